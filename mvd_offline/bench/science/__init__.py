"""Does it work? The paper's comparisons in miniature, on videos with one appearance task and one motion task."""
