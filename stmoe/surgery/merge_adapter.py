"""Adapters merged into their matrices: W + s A B in place of W, and nothing beside it.

  stmoe compress runs/adapted merge_adapter --workdir runs/merged
"""

import ml_collections

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.core.units import adapted
from stmoe.surgery import layout
from stmoe.surgery import sparse

PLACE = 'adapters'                       # what stands beside matrices, see `parts/adapting.py`


def operate(params: dict, config: ml_collections.ConfigDict,
            calibration: sparse.Calibration) -> tuple[dict, dict]:
  """Returns (params, changes) of the model without adapters, which computes the same; see `sparse`.

  Raises UserError for a model without an adapter, or with one that routes: it differs from token to token.
  """
  for path, part in modules.offering(sparse.abstract(config), 'unmergeable'):
    raise errors.UserError(f'{"/".join(map(str, path))}: {part.unmergeable}; it cannot be merged')
  if config.model.get('adapter') is None:
    raise errors.UserError('the model has no adapter that could be merged; nearest: '
                           '--config.finetune.adapter of stmoe finetune puts one there')
  scale = lookup.recipe('adapter', config.model.adapter.to_dict())().fields['scale']
  changes = {'model.adapter': None, 'train.trainable': 'all'}
  return _merged(params, scale), changes | ({'finetune.adapter': ''} if 'finetune' in config else {})


def _merged(tree, scale):
  """Nested dict `tree` with the matrices beside PLACE replaced by their sums, without PLACE."""
  if not isinstance(tree, dict):
    return tree
  whole = {key: _merged(value, scale) for key, value in tree.items() if key != PLACE}
  for name, part in tree.get(PLACE, {}).items():
    part = {key: layout.at(part, (key,)) for key in part}
    whole[name] = adapted.Adapted(layout.at(tree, (name,)), part['a'], part['b'], part.get('magnitude'),
                                  scale=scale).sum()
  return whole
