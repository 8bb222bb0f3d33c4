"""Rotary positions of type linear: all rates over a factor."""

from stmoe import ranges
from stmoe.interop import fields

FIELDS = ('factor',)


def configure(hf, given):
  """Returns (section `rotary_scaling`, 1.0) of the fields `given`."""
  return dict(name='linear', factor=float(fields.need(given, 'factor', ranges.Positive))), 1.0


def describe(scaling, logits):
  """Returns (fields of the type, {}) of a section `rotary_scaling`; `logits` is the factor of logits."""
  return dict(factor=scaling['factor']), {}
