"""What distillation adds to the shared training loop: which samples, how they are read, what is minimised."""
