"""What fine-tuning adds to the shared training loop: augmented clips, mixed batches, the classifier's task."""
