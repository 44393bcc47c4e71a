"""What an extraction is made of: which shards it works on, what it writes, what that cost, columns that it adds."""
