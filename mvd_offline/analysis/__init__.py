"""What teachers and students learn, made visible: similarity of frames, features in colours, predictions, gradients."""
