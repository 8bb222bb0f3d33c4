"""Rotary positions of type yarn (arXiv:2309.00071)."""

import math

from stmoe import errors
from stmoe import ranges
from stmoe.interop import fields

FIELDS = ('factor', 'original_max_position_embeddings', 'attention_factor', 'beta_fast', 'beta_slow',
          'mscale', 'mscale_all_dim', 'truncate')


def configure(hf, given):
  """Returns (section `rotary_scaling`, factor of the attention's logits) of the fields `given`."""
  number = lambda key, default=None, kind=ranges.Positive: fields.given(given, key, kind, default)
  length = number('original_max_position_embeddings', kind=ranges.Count) or fields.given(
      hf, 'max_position_embeddings', ranges.Count)
  factor = number('factor')
  if length is None or factor is None:
    raise errors.UserError('config.json: rotary positions of type yarn need factor and '
                           'original_max_position_embeddings')
  size = lambda scale: _size(factor, scale)
  mscale, all_dim = (number(key, kind=ranges.NonNegative) for key in ('mscale', 'mscale_all_dim'))
  # What cos and sin get divides out of the logits again, where the two scales are equal.
  turned = number('attention_factor') or (size(mscale) / size(all_dim) if mscale and all_dim else size(1.0))
  scaled = dict(name='yarn', factor=float(factor), length=length, fast=float(number('beta_fast', 32.0)),
                slow=float(number('beta_slow', 1.0)), size=float(turned))
  if not number('truncate', True, ranges.Flag):
    scaled['truncate'] = False
  return scaled, size(all_dim) ** 2 if all_dim else 1.0


def describe(scaling, logits):
  """Returns (fields of the type, fields of config.json) of a section `rotary_scaling`.

  logits: the factor of the attention's logits, which DeepSeek's models compute from mscale_all_dim.
  """
  factor, length = scaling['factor'], scaling['length']
  stated = dict(factor=factor, original_max_position_embeddings=length, beta_fast=scaling.get('fast', 32.0),
                beta_slow=scaling.get('slow', 1.0), attention_factor=scaling.get('size', 1.0),
                truncate=scaling.get('truncate', True))
  if logits != 1:
    stated['mscale_all_dim'] = _scale(factor, logits)
  return stated, dict(max_position_embeddings=round(factor * length))


def _scale(factor, logits):
  """The shortest mscale_all_dim of which `configure` makes the factor `logits`."""
  exact = (math.sqrt(logits) - 1) / (0.1 * math.log(factor)) if factor > 1 else 1.0
  near = [round(exact, digits) for digits in range(1, 17)]
  return next((scale for scale in near if _size(factor, scale) ** 2 == logits), exact)


def _size(factor, scale):
  """The factor of cosines and sines for a context `factor` times the length of training (section 3.4)."""
  return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
