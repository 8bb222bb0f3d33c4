"""Families of checkpoints, one a file, called like the `model_type` in their config.json."""
