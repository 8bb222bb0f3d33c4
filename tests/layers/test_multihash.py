"""MultiHash: the plain layer, equal executors, what is refused. Its formula: tests/oracles/check_hash.py."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import walk
from stmoe import lookup
from stmoe import router_state as state
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.layers import moe

B, T, D, F, K, V = 2, 8, 6, 12, 4, 20
ROUTER = dict(name='hash', num_experts=K, vocab_size=V)
LINEAR = dict(name='linear', d_ff=F, use_bias=True)


def recipe(num_hashes, router=(), **fields):
  return functools.partial(lookup.recipe('layer', dict(
      name='multihash', num_hashes=num_hashes, router=ROUTER | dict(router), experts=LINEAR, **fields)), D)


def filled(make):
  """The module of a recipe with random numbers in every array; nothing is compiled for them."""
  rng = np.random.default_rng(0)
  graph, params, tables = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param, ...)
  params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), params)
  tables = jax.tree.map(lambda s: jnp.asarray(rng.integers(0, K, s.shape), jnp.int32), tables)
  return nnx.merge(graph, params, tables)


def context(mask=None, **fields):
  mask = np.ones((B, T), bool) if mask is None else mask
  places = np.broadcast_to(np.arange(T), (B, T))
  ids = np.random.default_rng(5).integers(0, V, (B, T))
  return contract.Context(mask=jnp.asarray(mask), ids=jnp.asarray(ids), positions=jnp.asarray(places),
                          segments=jnp.asarray(mask.astype(np.int32)), step=jnp.int32(0),
                          tokens=jnp.float32(mask.sum()), **fields)


X = jnp.asarray(np.random.default_rng(7).normal(size=(B, T, D)), jnp.float32)


@jax.jit
def apply(module, x, ctx):
  return module(x, ctx, {})[:2]


def test_one_hash_is_the_plain_layer():
  module, ctx = filled(recipe(1)), context()
  plain = filled(functools.partial(moe.Moe, D, router=lookup.recipe('router', ROUTER),
                                   experts=lookup.recipe('experts', dict(LINEAR, name='mlp'))))
  plain.router.table = module.segments[0].router.table
  inward, outward = module.segments[0].experts
  for ours, theirs in ((plain.experts.wi, inward.w), (plain.experts.bi, inward.b),
                       (plain.experts.wo, outward.w), (plain.experts.bo, outward.b)):
    ours[...] = theirs[...]
  got, want = apply(module, X, ctx), apply(plain, X, ctx)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(got[1].load, want[1].load)


def test_parameters_are_those_of_k_networks():
  def size(num_hashes):
    module = nnx.eval_shape(lambda: recipe(num_hashes)(rngs=nnx.Rngs(0)))
    return sum(a.size for a in jax.tree.leaves(nnx.state(module, nnx.Param)))
  assert size(1) == size(2) == size(6) == K * (2 * D * F + D + F)


def test_hash_functions_differ():
  @jax.jit
  def tables():
    module = recipe(3)(rngs=nnx.Rngs(0))
    return [table[...] for _, table in nnx.to_flat_state(nnx.state(module, state.RouterState))]
  a, b, c = tables()
  assert (a != b).any() and (b != c).any() and (a != c).any()


def test_executors_agree_in_value_and_gradient(monkeypatch):
  monkeypatch.setattr(walk, 'sizes', lambda *_: (2, 4))
  mask = np.arange(T) < np.array([[T], [5]])
  ctx = context(mask)

  def run(executor):
    graph, params, tables = nnx.split(filled(recipe(2, executor=executor, group_size=4)), nnx.Param, ...)

    def loss(params, x):
      y, aux, _ = nnx.merge(graph, params, tables)(x, ctx, {})
      return jnp.sum(jnp.cos(jnp.arange(y.size)).reshape(y.shape) * y), (y, aux)
    (_, (y, aux)), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, X)
    assert not np.asarray(y[1, 5:]).any() and not np.asarray(grads[1][1, 5:]).any()      # padding
    ids = np.asarray(ctx.ids)[mask]
    wanted = [np.bincount(np.asarray(t)[ids], minlength=K) for t in jax.tree.leaves(tables)]
    np.testing.assert_array_equal(aux.load, np.concatenate(wanted))                      # of all segments
    assert aux.losses == {} and aux.metrics['drop_frac'] == 0
    return y, grads

  for got, want in zip(*(jax.tree.leaves(run(executor)) for executor in ('blocks', 'gather'))):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_dropout_on_the_hidden_activation_in_training_only():
  module = filled(recipe(2, dropout_rate=0.5))
  run = lambda seed, train: apply(module, X, context(key=jax.random.key(seed), train=train))[0]
  np.testing.assert_array_equal(run(0, False), run(1, False))
  assert float(jnp.abs(run(0, True) - run(1, True)).max()) > 1e-3


@pytest.mark.parametrize('num_hashes', [4, 12, 0])
def test_hash_functions_must_divide_both_widths(num_hashes):
  with pytest.raises(UserError, match=f'num_hashes={num_hashes} does not divide both d_model=6 and d_ff=12; '
                                      r'nearest: \d'):
    recipe(num_hashes)(rngs=nnx.Rngs(0))


def test_other_routers_are_refused():
  with pytest.raises(UserError, match='routers/switch.py is no hash function with a seed'):
    lookup.recipe('layer', dict(name='multihash', router=dict(name='switch', num_experts=K), experts=LINEAR))(
        D, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('kind', ['position', 'bigram'])
def test_equal_hash_functions_are_refused(kind):
  with pytest.raises(UserError, match=f"2 hash functions of kind='{kind}' would be the same"):
    recipe(2, router=dict(kind=kind))(rngs=nnx.Rngs(0))
