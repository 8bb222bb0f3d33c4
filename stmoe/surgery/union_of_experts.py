"""Union of Experts: dense networks and attention are cut into shards, which are the experts (2503.02495).

A network is cut as tensor parallelism cuts it: columns of the first matrix, rows of the second. The outputs
of all shards add up to that of the network. Heads of attention are shards already.
"""

import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.surgery import layout
from stmoe.surgery import sparse

INWARD, OUTWARD = ('wi', 'wg', 'wq', 'wk', 'wv'), 'wo'
BLOCK = ('attention', 'norm')         # fields of a block that stay
INWARD_BIAS, OUTWARD_BIAS = ('bi', 'bq', 'bk', 'bv'), 'bo'


def cut(arrays: dict[str, jax.Array], shards: int) -> dict[str, jax.Array]:
  """Returns the arrays [E,...] of E shards of a network, or of attention with E heads, by the same names.

  The output bias is divided: every shard has bo / E.

  Args:
    arrays: wi, wg [D,F], wo [F,D], bi [F], bo [D]; or wq, wk, wv [D,H P], wo [H P,D] with their biases.

  >>> cut(dict(wo=jnp.arange(4.0)[:, None], bo=jnp.ones(1)), 2)['wo'].tolist()
  [[[0.0], [1.0]], [[2.0], [3.0]]]
  """
  pieces = {}
  for name, array in arrays.items():
    if name in INWARD:
      pieces[name] = jnp.moveaxis(array.reshape(len(array), shards, -1), 1, 0)     # [E, D, F/E]
    elif name == OUTWARD:
      pieces[name] = array.reshape(shards, -1, array.shape[-1])      # [E, F/E, D]
    elif name in INWARD_BIAS:
      pieces[name] = array.reshape(shards, -1)                       # [E, F/E]
    else:
      assert name == OUTWARD_BIAS, name
      pieces[name] = jnp.broadcast_to(array / shards, (shards, len(array)))        # [E, D]
  return pieces


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, num_experts: ranges.Count = 4,
            select: ranges.Choice('data', 'causal') = 'causal',
            gate: ranges.Choice('none', 'straight') = 'none',
            attention: ranges.Flag = True, seed: ranges.Natural = 0) -> tuple[dict, dict]:
  """Returns (params, changes) with the dense layers in shards, and attention in heads that select tokens.

  Args:
    keep:        k / E of shards and k / H of heads, of 'data' also the share of tokens of each. At 1.0 the
      model computes what it did before, to round-off.
    num_experts: E, shards of a network.
    select, gate: see `routers/union_of_experts.py`; with select='causal' heads have room for all tokens.
    attention:   whether attention is changed, too.
    seed:        of the gates, which are new.
  Raises:
    UserError: no dense layer, a width that E does not divide, or a layer or attention without a counterpart.
  """
  rng = np.random.default_rng(seed)
  made: dict[tuple, object] = {}
  changes: dict[str, dict] = {}
  common = dict(select=select, gate=gate, share=keep if select == 'data' else 1.0, allow_causal=True)
  for where, path, block in _dense(config):
    _check(where, block.layer, num_experts)
    old = layout.at(params, path)
    router = dict(name='union_of_experts', num_experts=num_experts, **common,
                  k=sparse.share(num_experts, keep))
    made[(*path, 'layer')] = dict(experts=cut(old['layer'], num_experts),
                                  router=_gate(rng, 'w', 'b', len(old['layer']['wi']), num_experts))
    section = {key: value for key, value in sparse.section(config, where).items() if key in BLOCK}
    changes[where] = section | dict(layer='moe', executor='blocks', group_size=None, router=router,
                                    experts=_experts(block.layer, num_experts))
    if attention and block.attention is not None:
      heads = _heads(where, block.attention)
      arrays, biased = old['attention'], 'bq' in old['attention']
      arrays = (dict(bo=jnp.zeros(len(arrays['wq']))) if biased else {}) | arrays
      made[(*path, 'attention')] = dict(heads=cut(arrays, heads)) | _gate(
          rng, 'router_w', 'router_b', len(arrays['wq']), heads)
      changes[where]['attention'] = dict(name='union_of_experts', k=sparse.share(heads, keep),
                                         positions='true', use_bias=biased, **common)
  if not made:
    raise errors.UserError("the model has no block with layer='dense' that could be cut into shards")
  return sparse.replaced(params, made), changes


def _dense(config):
  """Yields (place of its fields, path, block without arrays) of every block with a dense layer."""
  model = sparse.abstract(config)
  paths = {id(module): path for path, module in nnx.iter_modules(model)}
  for stack in model.stacks():
    number = itertools.count()
    for (letters, repeats), units in zip(stack.pattern, stack.segments):
      blocks = (units if stack.scan_layers else units[0]).blocks
      for letter, block in zip(letters * repeats, [*blocks] * repeats):
        path, where = (*paths[id(stack)], 'layers', next(number)), f'blocks.{letter}'
        section = sparse.section(config, where)
        if section.layer == 'dense':
          if section.get('around'):
            raise errors.UserError(f'{where}.around: shards are made of blocks that all tokens pass')
          yield where, path, block


def _check(where, layer, number):
  """Raises UserError for a dense layer that `number` shards do not make up."""
  width = layer.wi.shape[-1]
  if width % number:
    near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - number))
    raise errors.UserError(f'{where}: num_experts={number} does not divide d_ff={width}; nearest: {near}')
  if layer.wg is not None and layer.bi is not None:
    raise errors.UserError(f'{where}: gated experts have no biases, as this layer has')


def _experts(layer, number):
  """The fields of a bank of shards of a dense layer."""
  fields = dict(d_ff=layer.wi.shape[-1] // number, activation=layer.activation,
                dropout_rate=layer.dropout_rate)
  if layer.wg is None:
    return dict(name='mlp', use_bias=layer.bi is not None, **fields)
  return dict(name='glu', limit=layer.limit, **fields)


def _heads(where, attention):
  """H of a plain attention; raises UserError for another one."""
  plain = type(attention).__name__ == 'Attention' and attention.q_norm is None and attention.clip is None
  if not plain or attention.wk.shape != attention.wq.shape or attention.scale == 1.0:
    raise errors.UserError(f'{where}: its attention is not plain (norms, clipping, fewer heads of keys, no '
                           'scale); nearest: attention=False')
  return attention.wq.shape[-1] // attention.head_dim


def _gate(rng, w, b, width, number):
  """The arrays of a new gate, by the names `w` and `b`."""
  return {w: jnp.asarray(rng.normal(0, 0.02, (width, number)), jnp.float32), b: jnp.zeros(number)}
