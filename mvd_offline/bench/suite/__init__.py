"""All benchmarks in one go: what is run, what of it goes into the table, and the pictures."""
