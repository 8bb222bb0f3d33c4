"""Rotary positions of type dynamic: a base that grows with texts longer than those of training."""

from stmoe import ranges
from stmoe.interop import fields

FIELDS = ('factor', 'original_max_position_embeddings')


def configure(hf, given):
  """Returns (section `rotary_scaling`, 1.0) of the fields `given`.

  transformers takes max_position_embeddings for the length of training and leaves the type's own field aside.
  Where the two differ, the type's own field is refused.
  """
  length = fields.need(hf, 'max_position_embeddings')
  fields.only(given, original_max_position_embeddings=length)
  return dict(name='dynamic', factor=float(fields.need(given, 'factor', ranges.AtLeast1)), length=length), 1.0


def describe(scaling, logits):
  """Returns (fields of the type, fields of config.json) of a section `rotary_scaling`; see `configure`."""
  return dict(factor=scaling['factor']), dict(max_position_embeddings=scaling['length'])
