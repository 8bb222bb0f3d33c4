"""Checkpoints of other libraries: files, tables of names, configurations both ways."""
