"""What runs left in their folders, for a reader: their metrics over steps, what differs between them. No torch."""
