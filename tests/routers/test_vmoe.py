"""V-MoE's routing on an example worked by hand: raw gates, order of choices, priority, noise, losses."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import losses
from stmoe.routers import vmoe

ALL = np.ones((1, 4), bool)
route = jax.jit(vmoe.vmoe, static_argnums=(2, 3), static_argnames=('noise_std', 'batch_priority'))


def test_raw_gates_in_token_order_first_choices_first(logits, edges):
  a, aux = route(logits, ALL, 2, 2)
  # Expert 0 is wanted first by 0, 1, 2 (2 finds it full), expert 1 by 3; one slot is left there for the
  # second choice of token 0. With k = E the gates sum to 1, and still are what the softmax gave.
  assert edges(a) == {(0, 0, 0, 0.8), (1, 0, 1, 0.6), (3, 1, 0, 0.9), (0, 1, 1, 0.2)}
  assert aux.load.tolist() == [4, 4]
  assert aux.losses['load'] == 0                                     # without noise


def test_batch_priority_serves_the_surest_tokens(logits, edges):
  a, _ = route(logits, ALL, 1, 1, batch_priority=True)
  assert edges(a) == {(0, 0, 0, 0.8), (3, 1, 0, 0.9)}
  a, _ = route(logits[:, ::-1], ALL, 1, 1, batch_priority=True)      # the order does not matter now
  assert edges(a) == {(3, 0, 0, 0.8), (0, 1, 0, 0.9)}
  a, _ = route(logits[:, ::-1], ALL, 1, 1)
  assert edges(a) == {(1, 0, 0, 0.7), (0, 1, 0, 0.9)}                # vanilla: the first in order


def test_batch_priority_is_by_the_raw_gate():
  # Over the sum of its two gates token 0 would come first: 0.6 against 0.5556.
  logits = jnp.log(jnp.array([[[0.45, 0.3, 0.25], [0.5, 0.4, 0.1]]]))
  a, _ = route(logits, np.ones((1, 2), bool), 1, 2, batch_priority=True)
  assert a.slot[0, :2].tolist() == [1, 0]                            # 1 = C: dropped


def test_a_dropped_first_choice_still_takes_its_number(edges):
  # Expert 0 is the first choice of tokens 0 and 1, and the second of 2. With one slot token 1 is dropped,
  # and its number is not given to token 2.
  probs = jnp.array([[[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.4, 0.1, 0.5]]])
  a, aux = route(jnp.log(probs), np.ones((1, 3), bool), 1, 2)
  assert edges(a) == {(0, 0, 0, 0.6), (2, 2, 0, 0.5), (0, 1, 0, 0.3)}
  np.testing.assert_allclose(aux.metrics['drop_frac'], 3 / 6)


def test_importance_by_hand(logits):
  # Sums of PROBS: 2.2 and 1.8, mean 2, variance 0.04.
  _, aux = route(logits, ALL, 4, 2)
  np.testing.assert_allclose(aux.losses['importance'], 0.01, rtol=1e-5)
  # GShard's: shares 3/4 and 1/4 of first choices, means 0.55 and 0.45; second choices do not count.
  np.testing.assert_allclose(aux.losses['gshard'], 2 * (0.75 * 0.55 + 0.25 * 0.45), rtol=1e-6)


def test_load_by_hand():
  # One token, k = 1, noise that lifts expert 0 to 1: the threshold is 1, so sigma = 0.5 wins with
  # 1 - Phi(2) for expert 0 (z = 0) and 1 - Phi(4) for expert 1 (z = -1).
  logits, noise = jnp.array([[[0.0, -1.0]]]), jnp.array([[[2.0, 0.0]]])
  _, aux = route(logits, np.ones((1, 1), bool), 1, 1, noise=noise, noise_std=0.5)
  p = np.array([0.5 * math.erfc(n / math.sqrt(2)) for n in (2, 4)])
  np.testing.assert_allclose(aux.losses['load'], p.var() / p.mean() ** 2, rtol=1e-4)


def test_load_has_a_gradient_through_logits_and_threshold():
  logits = jax.random.normal(jax.random.key(0), (2, 6, 4)) / 4
  noisy = logits + jax.random.normal(jax.random.key(1), logits.shape) / 4
  mask = np.ones((2, 6), bool)
  loss = lambda z, n: losses.load(z, n, 2, 0.25, mask)
  by_z, by_noisy = jax.grad(loss, (0, 1))(logits, noisy)
  assert jnp.abs(by_z).max() > 1e-3 and jnp.abs(by_noisy).max() > 1e-3
  assert ((by_noisy != 0).sum(axis=-1) == 1).all()                   # the k-th of every token, no other
  step = 1e-2 * jnp.sign(by_z)
  difference = (loss(logits + step, noisy) - loss(logits - step, noisy)) / 2
  np.testing.assert_allclose(difference, jnp.sum(step * by_z), rtol=2e-2)


def test_losses_of_groups_are_averaged_over_their_tokens():
  logits = jax.random.normal(jax.random.key(0), (2, 4, 3))
  noise = jax.random.normal(jax.random.key(1), logits.shape)
  both = np.array([[True] * 4, [True, False, False, False]])
  run = lambda i, n: route(logits[i:i + 1, :n], np.ones((1, n), bool), 4, 2, noise=noise[i:i + 1, :n],
                           noise_std=0.3)[1].losses
  whole = route(logits, both, 4, 2, noise=noise, noise_std=0.3)[1].losses
  for name, value in whole.items():
    np.testing.assert_allclose(value, (4 * run(0, 4)[name] + run(1, 1)[name]) / 5, rtol=1e-5)


def test_a_perfectly_balanced_group_has_a_finite_gradient():
  grad = jax.grad(lambda p: losses.importance(p, ALL))(jnp.full((1, 4, 2), 0.5))
  assert not jnp.any(grad)                                           # a standard deviation would give NaN


def test_noise_is_drawn_in_training_only_and_shrinks_with_experts(call, context):
  x = jnp.ones((1, 512, 8))
  def spread(router, **fields):
    router.w[...] = jnp.zeros_like(router.w[...])
    routed = call(router, x, context(np.ones((1, 512), bool), **fields))
    return float(jnp.ptp(jnp.log(routed.assignment.weight[0, :512])))
  make = lambda experts, **fields: vmoe.VMoe(8, num_experts=experts, k=1, rngs=nnx.Rngs(0), **fields)
  key = jax.random.key(0)
  assert spread(make(4), key=key) == 0                               # evaluation
  four, sixteen = spread(make(4), key=key, train=True), spread(make(16), key=key, train=True)
  assert 0.3 < four < 1.5 and 2 < four / sixteen < 8
  assert spread(make(4, noise_std=0.0), key=key, train=True) == 0


@pytest.mark.parametrize('factors, train, capacity', [
    ((1.05, 4.0), True, 12),                                         # ceil(20 * 2 * 1.05 / 4) = 11
    ((1.05, 4.0), False, 20),                                        # 40, but a token has an expert once
    ((None, None), True, 20),
    ((0.1, 0.1), True, 4)])
def test_capacity(call, context, factors, train, capacity):
  router = vmoe.VMoe(8, num_experts=4, capacity_factor=factors, rngs=nnx.Rngs(0))
  routed = call(router, jnp.ones((1, 20, 8)), context(np.ones((1, 20), bool), train=train))
  assert routed.assignment.capacity == capacity


def test_refusals(context):
  make = lambda **fields: vmoe.VMoe(8, num_experts=4, rngs=nnx.Rngs(0), **fields)
  with pytest.raises(errors.UserError, match='k=5 with num_experts=4'):
    make(k=5)
  with pytest.raises(errors.UserError, match='above 0'):
    make(capacity_factor=(0.0, 1.0))
  causal = context(ALL, causal=True)
  with pytest.raises(errors.UserError, match='causal stack'):
    make(batch_priority=True)(jnp.ones((1, 4, 8)), causal, {})
  make(batch_priority=True, allow_causal=True)(jnp.ones((1, 4, 8)), causal, {})
