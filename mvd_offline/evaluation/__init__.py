"""The multi-view test of a classifier, piece by piece: videos, views, logits, scores, files, pictures, splits."""
