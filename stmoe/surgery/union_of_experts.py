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
from stmoe.surgery import aside
from stmoe.surgery import dense
from stmoe.surgery import layout
from stmoe.surgery import sparse

INWARD, OUTWARD = ('wi', 'wg', 'wq', 'wk', 'wv'), 'wo'
INWARD_BIAS, OUTWARD_BIAS = ('bi', 'bg', 'bq', 'bk', 'bv'), 'bo'


def cut(arrays: dict[str, jax.Array], shards: int) -> dict[str, jax.Array]:
  """Returns the arrays [E,...] of E shards of a network, or of attention with E heads, by the same names.

  The output bias is divided: every shard has bo / E.

  Args:
    arrays: wi, wg [D,F], wo [F,D], bi, bg [F], bo [D]; or wq, wk, wv [D,H P], wo [H P,D] with their biases.

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


def factorise(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
              num_experts: ranges.Count = 4, share: ranges.PartOf1 = 0.5,
              select: ranges.Choice('data', 'causal') = 'causal',
              gate: ranges.Choice('none', 'straight') = 'none',
              attention: ranges.Flag = True, letters: ranges.Text = '',
              seed: ranges.Seed = 0) -> tuple[dict, dict]:
  """Returns (params, changes) with the dense layers in shards, and attention in heads that select tokens.

  Args:
    num_experts: E, shards of a network.
    share:       k / E of shards and k / H of heads, of 'data' also the share of tokens of each. With 1.0 the
      model computes what it did before, to round-off.
    select, gate: see `routers/union_of_experts.py`; with select='causal' heads have room for all tokens.
    attention:   whether attention of these blocks is changed, too.
    letters:     of the blocks; '' = all with dense layers.
    seed:        of the gates, which are new.
  Raises:
    UserError: a width that E does not divide, or attention without a counterpart.
  """
  rng = np.random.default_rng(seed)
  made = aside.Made()
  changes: dict[str, dict] = {}
  common = dict(select=select, gate=gate, share=share if select == 'data' else 1.0, allow_causal=True)
  attending = _attention(config) if attention else {}
  for layer in dense.found(config, letters):
    section = sparse.section(config, layer.where)
    dense.check_parts(section, 'num_experts', num_experts)
    arrays = layer.arrays(params)
    made[layer.path] = dict(experts=cut(arrays, num_experts),
                            router=_gate(rng, 'w', 'b', len(arrays['wi']), num_experts))
    router = dict(name='union_of_experts', num_experts=num_experts, k=sparse.share(num_experts, share))
    changes[layer.where] = dense.block(
        section, layer='moe', executor='blocks', group_size=None, router=router | common,
        experts=dense.bank(section, section.d_ff // num_experts))
    path = (*layer.path[:-1], 'attention')
    if attending.get(path) is not None:
      arrays = jax.tree.map(aside.fetched, layout.at(params, path))
      made[path], fields = _in_heads(layer.where, attending[path], arrays, share, rng)
      changes[layer.where]['attention'] = fields | common
  return sparse.replaced(params, made), changes


def _attention(config):
  """Dict path in numbered parameters -> attention without arrays, or None, of every block."""
  model, found = sparse.abstract(config), {}
  paths = {id(module): path for path, module in nnx.iter_modules(model)}
  for stack in sparse.stacks(model):
    number = itertools.count()
    for (_, repeats), units in zip(stack.pattern, stack.segments):
      for block in [*(units if stack.scan_layers else units[0]).blocks] * repeats:
        found[(*paths[id(stack)], 'layers', next(number), 'attention')] = getattr(block, 'attention', None)
  return found


def _in_heads(where, attention, arrays, share, rng):
  """(arrays, fields) of attention whose heads select tokens, from those of plain attention."""
  heads, biased = _heads(where, attention), 'bq' in arrays
  arrays = (dict(bo=jnp.zeros(len(arrays['wq']))) if biased else {}) | arrays
  made = dict(heads=cut(arrays, heads)) | _gate(rng, 'router_w', 'router_b', len(arrays['wq']), heads)
  return made, dict(name='union_of_experts', k=sparse.share(heads, share), positions='true', use_bias=biased)


def _heads(where, attention):
  """H of a plain attention; raises UserError for another one."""
  plain = (type(attention).__name__ == 'Attention' and attention.q_norm is None and attention.clip is None
           and attention.scale == attention.width ** -0.5 and attention.width == attention.head_dim
           and not attention.interleaved and attention.sinks is None)
  if not plain or attention.wk.shape != attention.wq.shape:
    raise errors.UserError(f'{where}: its attention is not plain (norms, clipping, fewer heads of keys, '
                           'another scale, neighbours as rotary pairs, numbers that are not turned); '
                           'nearest: attention=False')
  return attention.wq.shape[-1] // attention.head_dim


def _gate(rng, w, b, width, number):
  """The arrays of a new gate, by the names `w` and `b`."""
  return {w: jnp.asarray(rng.normal(0, 0.02, (width, number)), jnp.float32), b: jnp.zeros(number)}
