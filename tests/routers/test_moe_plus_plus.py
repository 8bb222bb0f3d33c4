"""MoE++ by numbers worked by hand: gates, weighted balance, capacities, what its layer adds."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.core import contract
from stmoe.routers import moe_plus_plus

# Probabilities of one real expert, a copy and a zero; the last token is padding.
PROBS = np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.2, 0.3], [0.1, 0.1, 0.8]], np.float32)
LOGITS, MASK = np.log(PROBS)[None], np.array([[True, True, True, False]])


@functools.partial(jax.jit, static_argnames='gates')
def route(logits, gates='others'):
  return moe_plus_plus.moe_plus_plus(logits, MASK, 2, num_virtual=2, num_zero=1, gates=gates)


def weights(a):
  """f32[S,E+Z] of the first group."""
  dense = np.zeros((a.num_tokens, a.dead + 1))
  dense[a.token[0], a.expert[0]] = a.weight[0]
  return dense[:, :-1]


def test_a_zero_expert_gives_its_weight_to_the_other_choice():
  a, aux = route(LOGITS)
  expected = [[2 / 3, 1 / 3, 0], [1 / 3, 2 / 3, 0], [1, 0, 0], [0, 0, 0]]
  np.testing.assert_allclose(weights(a), expected, rtol=1e-6)
  assert aux.load.tolist() == [3, 2, 1] and aux.metrics['active_experts'] == 1
  # f = 3 / 6 (3, 2, 1) = (1.5, 1, 0.5), eta = (1, 0.75, 0.75), P the means of the columns.
  expected = 1.5 * 1.25 / 3 + 0.75 * (1.0 * 0.95 / 3 + 0.5 * 0.8 / 3)
  np.testing.assert_allclose(aux.losses['balance'], expected, rtol=1e-6)
  np.testing.assert_allclose(weights(route(LOGITS, 'chosen')[0])[2], [0.5 / 0.8, 0, 0.3 / 0.8], rtol=1e-6)


def test_only_the_balance_loss_trains_a_zero_expert():
  @jax.jit
  @jax.jacrev
  def gradients(logits):
    a, aux = route(logits)
    return dict(task=jnp.sum(jnp.cos(jnp.arange(8)) * a.weight[0]), balance=aux.losses['balance'])
  found = {name: grad[0, :3, 2] for name, grad in gradients(LOGITS).items()}
  np.testing.assert_allclose(found['task'], 0, atol=1e-7)
  assert np.abs(found['balance']).min() > 1e-3


def test_deviation_without_mean():
  logits = jnp.array([[[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]])           # unbiased deviation 1, and none
  scaled, pull = jax.vjp(lambda x: moe_plus_plus.normalize(x, 1.5), logits)
  np.testing.assert_allclose(scaled[0, 0], [1.5, 3.0, 4.5], rtol=1e-6)
  assert np.isfinite(pull(jnp.ones_like(logits))[0]).all()


def recipe(router=(), **fields):
  router = dict(name='moe_plus_plus', num_experts=4) | dict(router)
  return lookup.recipe('layer', dict(name='moe_plus_plus', router=router, experts=dict(name='mlp', d_ff=8),
                                     executor='einsum') | fields)


def build(**fields):
  return jax.jit(lambda: recipe(**fields)(6, rngs=nnx.Rngs(0)))()


def context(batch, length):
  mask = jnp.ones((batch, length), bool)
  return contract.Context(**contract.numbered(mask), step=jnp.int32(0), tokens=jnp.float32(mask.size))


def test_capacities_of_real_and_virtual_experts():
  # 2 choices of 24 tokens over 0.75 x 4 + 3 = 6 parts: 8 of a virtual expert, 6 of a real one; times 1.5.
  made = build(num_constant=1, router=dict(capacity_factor=(1.5, None), min_capacity=1))
  router, ctx = made.moe.router, context(1, 24)
  assert router.capacity(ctx.replace(train=True)) == (9,) * 4 + (12,) * 3
  assert router.capacity(ctx) == (24,) * 7
  a = jax.eval_shape(lambda: router(jnp.zeros((1, 24, 6)), ctx, {}).assignment)
  assert a.rows_per_group == 48 * 0.5                                # 3 of 6 parts


def test_the_router_reads_x_where_experts_read_two_of_it():
  made, ctx, x = build(), context(2, 5), jax.random.normal(jax.random.key(1), (2, 5, 6))
  made.residual[...] = 2 * jnp.eye(8)

  @functools.partial(jax.jit, static_argnames='scale')
  def run(made, scale):
    made.scale = scale
    y, _, first = made(x, ctx, made.init_carry(x))
    logits = (carry[made.memory] for carry in (first, made(x, ctx, first)[2]))
    return y, made.moe.router.logits(x, ctx), *logits
  y, own, first, second = run(made, 2)
  np.testing.assert_allclose(first, own, rtol=1e-6)
  np.testing.assert_allclose(second, 3 * own, rtol=1e-5)             # own and twice those of the layer before
  other, *logits = run(made, 1)
  assert np.abs(other - y).max() > 1e-4
  np.testing.assert_allclose(logits, (own, first, second), rtol=1e-6)


def test_what_reads_logits_reads_them_with_the_gating_residual():
  """The counts of a balance loss around the router are its load."""
  router = dict(name='balance', scope='group', inner=dict(name='moe_plus_plus', num_experts=4))
  make = lookup.recipe('layer', dict(name='moe_plus_plus', router=router, experts=dict(name='mlp', d_ff=8)))
  made = make(6, rngs=nnx.Rngs(0))
  made.residual[...] = 3 * jnp.eye(8)[::-1]
  x, before = (jax.random.normal(jax.random.key(n), (1, 32, n)) for n in (6, 8))
  _, aux, _ = jax.jit(made)(x, context(1, 32), {made.memory: before})
  assert aux.statistics['balance_counts'].value.tolist() == aux.load.tolist()


def test_another_router_is_refused_and_wrappers_are_not():
  with pytest.raises(errors.UserError, match='router st_moe leaves no zero .* nearest: .*moe_plus_plus'):
    recipe(dict(name='st_moe'))(6, rngs=nnx.Rngs(0))
  inner = dict(name='moe_plus_plus', num_experts=4)
  wrapped = recipe(router=dict(name='remap', num_experts=2, inner=inner), residual=False)
  made = nnx.eval_shape(lambda: wrapped(6, rngs=nnx.Rngs(0)))
  assert made.moe.router.inner.num_zero == 1 and made.width == 8
  assert made.init_carry(jnp.zeros((1, 2, 6))) == {}
