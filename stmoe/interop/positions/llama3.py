"""Rotary positions of type llama3: rates by wavelength."""

from stmoe import ranges
from stmoe.interop import fields

FIELDS = ('factor', 'original_max_position_embeddings', 'low_freq_factor', 'high_freq_factor')


def configure(hf, given):
  """Returns (section `rotary_scaling`, 1.0) of the fields `given`, all of which the type needs."""
  number = lambda key: float(fields.need(given, key, ranges.Positive))
  return dict(name='llama3', factor=number('factor'), low=number('low_freq_factor'),
              high=number('high_freq_factor'),
              length=fields.need(given, 'original_max_position_embeddings')), 1.0


def describe(scaling, logits):
  """Returns (fields of the type, fields of config.json) of a section `rotary_scaling`."""
  return dict(factor=scaling['factor'], low_freq_factor=scaling.get('low', 1.0),
              high_freq_factor=scaling.get('high', 4.0), original_max_position_embeddings=scaling['length']
              ), dict(max_position_embeddings=round(scaling['factor'] * scaling['length']))
