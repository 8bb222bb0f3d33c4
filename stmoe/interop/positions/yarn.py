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
  size = lambda scale: 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
  mscale, all_dim = (number(key, kind=ranges.NonNegative) for key in ('mscale', 'mscale_all_dim'))
  # What cos and sin get divides out of the logits again, where the two scales are equal.
  turned = number('attention_factor') or (size(mscale) / size(all_dim) if mscale and all_dim else size(1.0))
  scaled = dict(name='yarn', factor=float(factor), length=length, fast=float(number('beta_fast', 32.0)),
                slow=float(number('beta_slow', 1.0)), size=float(turned))
  if not number('truncate', True, ranges.Flag):
    scaled['truncate'] = False
  return scaled, size(all_dim) ** 2 if all_dim else 1.0
