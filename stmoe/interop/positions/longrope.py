"""Rotary positions of type longrope (arXiv:2402.13753): factors of short and of long texts, pair by pair."""

import math

from stmoe import errors
from stmoe import ranges
from stmoe.interop import fields

FIELDS = ('short_factor', 'long_factor', 'short_mscale', 'long_mscale', 'original_max_position_embeddings',
          'factor', 'attention_factor')
FACTORS = ranges.Many(ranges.Positive, least=1)


def configure(hf, given):
  """Returns (section `rotary_scaling`, 1.0) of the fields `given`.

  Cosines and sines of short and of long texts have factors of their own, short_mscale and long_mscale. Where
  one is not there its place takes attention_factor, or what section 3.3 of the paper makes of the factor.
  """
  number = lambda key, kind=ranges.Positive: fields.given(given, key, kind)
  most = fields.given(hf, 'max_position_embeddings', ranges.Count)
  length = _length(hf, given, most)
  factor = number('factor') or most and most / length
  usual = number('attention_factor') or _size(factor, length)
  size = lambda key: float(number(key) or usual)
  factors = lambda key: tuple(float(factor) for factor in fields.need(given, key, FACTORS))
  return dict(name='longrope', short=factors('short_factor'), long=factors('long_factor'), length=length,
              short_size=size('short_mscale'), long_size=size('long_mscale')), 1.0


def _length(hf, given, most):
  """Positions of training; the field may stand beside the others or at the top of config.json."""
  key = 'original_max_position_embeddings'
  inner, outer = (fields.given(there, key, ranges.Count) for there in (given, hf))
  if inner and outer and inner != outer:
    raise errors.UserError(f'config.json says {key} twice: {outer} and, of rotary positions, {inner}')
  if not (inner or outer or most):
    raise errors.UserError(f'config.json: rotary positions of type longrope need {key}')
  return inner or outer or most


def _size(factor, length):
  """The factor of cosines and sines for contexts `factor` times the `length` of training."""
  return math.sqrt(1 + math.log(factor) / math.log(length)) if factor and factor > 1 and length > 1 else 1.0


def describe(scaling, logits):
  """Returns (fields of the type, fields of config.json) of a section `rotary_scaling`.

  Only Phi-3.5-MoE has sizes of short and of long texts; attention_factor is for other models.
  """
  short, long = (scaling.get(f'{texts}_size', 1.0) for texts in ('short', 'long'))
  length = dict(original_max_position_embeddings=scaling['length'])
  return (dict(short_factor=list(scaling['short']), long_factor=list(scaling['long']), short_mscale=short,
               long_mscale=long, **length, **(dict(attention_factor=short) if short == long else {})), length)
