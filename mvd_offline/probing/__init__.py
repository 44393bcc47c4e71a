"""Judging an encoder without fine-tuning it: small classifiers on its frozen features."""
