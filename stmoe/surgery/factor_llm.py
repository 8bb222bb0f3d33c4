"""FactorLLM: every dense feed-forward layer is cut into chunks, of which a router chooses (arXiv:2408.11855).

The router begins with random numbers and learns which chunks come nearest to the layer as it was. The new run
keeps a frozen copy of that layer (`layers/factor_llm.py`). The configuration becomes the paper's: chunks and
routers train, all else is frozen, and both losses of the routers have their weights.
"""

import ml_collections
import numpy as np

from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import dense
from stmoe.surgery import sparse

INIT_STD = 0.02                          # of routers, as in all of this project
PRIOR, BALANCE = (0.05, 'sum'), (0.01, 'sum')
TRAINED = dict(expert=dict(train=True), router=dict(train=True), rest=dict(train=False))


def factorise(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
              num_experts: ranges.Count = 4, k: ranges.Count | None = None,
              prior: ranges.Choice('teacher', 'own', 'none') = 'teacher',
              wanted: ranges.Choice('nearest', 'subset') = 'nearest', letters: ranges.Text = '',
              seed: ranges.Seed = 0) -> tuple[dict, dict]:
  """Returns (params, changes) with `num_experts` chunks for each dense layer; see `dense`.

  With k = num_experts the model computes what it did before.

  Args:
    k:       chunks of a token; None = half of them.
    prior, wanted: of the layer, see `layers/factor_llm.py`; 'none': everything trains, routers excepted.
    letters: of the blocks; '' = all with dense layers.
    seed:    of the routers' first numbers.
  """
  layers = dense.found(config, letters)
  made = aside.Made()
  changes: dict[str, object] = {}
  for number, layer in enumerate(layers):
    section = sparse.section(config, layer.where)
    dense.check_parts(section, 'num_experts', num_experts)
    arrays = layer.arrays(params)
    width = arrays['wi'].shape[0]
    draw = np.random.default_rng([seed, number]).normal(0, INIT_STD, (width, num_experts))
    made[layer.path] = dict(
        experts=dense.cut(arrays, num_experts),
        router=dict(w=np.float32(draw), b=np.zeros(num_experts, np.float32)),
        **({} if prior == 'none' else dict(teacher=arrays)))
    changes[layer.where] = dense.block(section, **_layer(section, num_experts, k, prior, wanted))
  if prior != 'none':
    changes |= {'losses.prior': PRIOR, 'losses.balance': BALANCE, 'groups': TRAINED, 'train.trainable': 'all'}
  params = sparse.replaced(params, made)
  return (params, changes) if prior != 'teacher' else _beside_teacher(params, config, changes)


def _layer(section, num_experts, k, prior, wanted):
  """The fields of the layer in place of the dense layer `section`."""
  same = {field: section[field] for field in (
      'd_ff', 'activation', 'gated', 'use_bias', 'limit', 'dropout_rate', 'init_scale')}
  return dict(same, layer='factor_llm', num_experts=num_experts, k=k, prior=prior, wanted=wanted)


def _beside_teacher(params, config, changes):
  """(params, changes) with every block inside of the one that brings the teacher's states."""
  inside = dict(around=dict(name='factor_llm'))
  changes = changes | {f'blocks.{letter}': dict(changes.get(f'blocks.{letter}') or block.to_dict(), **inside)
                       for letter, block in config.blocks.items()}
  return _wrapped(params), changes


def _wrapped(tree):
  """The numbered parameters with what a block has under `block`."""
  if not isinstance(tree, dict):
    return tree
  return {key: {number: dict(block=block) for number, block in value.items()} if key == 'layers'
          else _wrapped(value) for key, value in tree.items()}
