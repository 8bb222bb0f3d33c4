"""Checks of Hash layers: tables, and layers with the reference's weights in ours.

The reference's matrices are [H,out,in]; ours are [E,in,out].
"""

import functools

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import contract
from stmoe.core import tables
from stmoe.core.execute import gather
from stmoe.core.units import activations as units
from stmoe.experts import linear
from stmoe.experts import mlp
from stmoe.layers import moe
from stmoe.layers import multihash as layers
from stmoe.routers import hash as router


RANDOM = 'for id in 0..V-1: Python random.seed(42) then random.randrange(0,H) in id order'


def hash_table(case):
  config = case.config
  table = tables.random_table(config['vocab'], config['experts'], config.get('seed', 42))
  case.assert_close('table', table)
  case.assert_close('load', tables.loads(table, np.ones(len(table), np.int64), config['experts']))


def balanced_table(case):
  counts, experts = case['freq'], case.config['experts']
  table = tables.balanced_table(counts, experts)
  # As the file says: loads as a multiset; the table only where counts are distinct, never where they are 0.
  load = tables.loads(table, counts, experts)
  np.testing.assert_array_equal(np.sort(load), np.sort(case['load']))
  visited = case['visit_order']
  np.testing.assert_array_equal(counts[visited], np.sort(counts)[::-1])
  seen = counts > 0
  if len(np.unique(counts)) == len(counts):
    np.testing.assert_array_equal(table[seen], case['table'][seen])
  else:
    case.ignore('table', 'equal counts may be visited in any order')


def _context(ids, vocab_size):
  whole = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  return contract.Context(mask=jnp.ones(ids.shape, bool), ids=jnp.asarray(ids), positions=whole,
                          segments=whole, step=jnp.int32(0), tokens=jnp.float32(ids.size),
                          vocab_size=vocab_size)


def _t(w):
  return jnp.asarray(w).swapaxes(-1, -2)


def layer(case):
  config = case.config
  vocab, experts = config['vocab'], config['experts']
  module = moe.Moe(config['D'], rngs=nnx.Rngs(0),
                   router=functools.partial(router.Hash, num_experts=experts, vocab_size=vocab),
                   experts=functools.partial(mlp.Mlp, d_ff=config['F'], use_bias=True,
                                             activation=case.option('activation', activations.TORCH, 'relu')))
  rule = config.get('table_rule', RANDOM)
  if rule == RANDOM:                                                 # seed 42 is our default
    case.assert_close('table', module.router.table[...])
  module.router.table[...] = jnp.asarray(case['table'])
  module.experts.wi[...], module.experts.bi[...] = _t(case['w1']), case['b1']
  module.experts.wo[...], module.experts.bo[...] = _t(case['w2']), case['b2']
  ctx = _context(case['token_ids'], vocab)
  graph, params, rest = nnx.split(module, nnx.Param, ...)

  @jax.jit
  def run(params, x):
    y, pull = jax.vjp(lambda params, x: nnx.merge(graph, params, rest)(x, ctx, {})[0], params, x)
    return y, pull(jnp.asarray(case['grad_seed']))

  y, (dparams, dx) = run(params, jnp.asarray(case['x']))
  routed = module.router(jnp.asarray(case['x']), ctx, {})
  case.assert_close('expert', routed.assignment.expert)
  case.assert_close('y', y)
  case.assert_close('dx', dx)
  case.assert_close('dw1', _t(dparams['experts']['wi'][...]))
  case.assert_close('dw2', _t(dparams['experts']['wo'][...]))


def moebert_layer(case):
  x, ids = jnp.asarray(case['x']), case['token_ids']
  experts, width = case.config['experts'], x.shape[-1]
  bank = mlp.Mlp(width, num_experts=experts, d_ff=case['w1'].shape[1], use_bias=True, rngs=nnx.Rngs(0),
                 activation=case.option('activation', activations.TORCH, 'gelu exact (erf)'))
  bank.wi[...], bank.bi[...] = _t(case['w1']), jnp.asarray(case['b1'])
  bank.wo[...], bank.bo[...] = _t(case['w2']), jnp.asarray(case['b2'])

  @jax.jit
  def run(x):
    bucket = jnp.asarray(case['table'])[ids]
    a, aux = router.route(bucket, jnp.ones(ids.shape, bool), ids.shape[1], experts)
    return gather.execute(x, a, bank), aux
  y, aux = run(x)
  case.assert_close('y', y)
  case.assert_close('load', aux.load)


def multihash(case):
  config, activation = case.config, case.option('activation', activations.TORCH, 'relu')
  module = layers.MultiHash(
      config['D'], rngs=nnx.Rngs(0), num_hashes=config['N'], activation=activation,
      router=functools.partial(router.Hash, num_experts=config['K'], vocab_size=config['V']),
      experts=functools.partial(linear.Linear, d_ff=config['F'], use_bias=True))
  for m, segment in enumerate(module.segments):
    segment.router.table[...] = jnp.asarray(case['tables'][m])
    for bank, name in zip(segment.experts, 'ac'):
      bank.w[...], bank.b[...] = _t(case[name][m]), case[f'{name}_bias'][m]
  x, ctx = jnp.asarray(case['x']), _context(case['token_ids'], config['V'])

  @jax.jit
  def run(module, x):
    assigned = [segment.router(x, ctx, {}).assignment for segment in module.segments]
    banks = [segment.experts[0] for segment in module.segments]
    hidden = layers.concatenated(x, assigned, banks, gather.execute)
    return module(x, ctx, {})[0], units.named(activation)(hidden), jnp.stack([a.expert for a in assigned])
  y, hidden, bucket = run(module, x)
  case.assert_close('bucket', bucket)
  case.assert_close('hidden', hidden)
  case.assert_close('y', y)
