"""Checkpoints of runs: written, sealed with checksums, found and opened again."""
