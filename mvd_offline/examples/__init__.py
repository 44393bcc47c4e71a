"""What a model that was just trained makes of a few of its samples, as small pictures in the run's folder."""
