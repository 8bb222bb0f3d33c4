"""Families of checkpoints, a file each, called like the `model_type` in their config.json."""
