"""The Vision Transformer: its configuration, the model, and checkpoints in and out."""
