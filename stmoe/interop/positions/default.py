"""Rotary positions as they are: no field, no scaling."""

FIELDS = ()


def configure(hf, given):
  """Returns (None, 1.0)."""
  return None, 1.0


def describe(scaling, logits):
  """Returns ({}, {})."""
  return {}, {}
