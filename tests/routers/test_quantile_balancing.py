"""Quantile balancing: one step balances what it saw, however the quantile is found and the batch is cut."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import bias as bias_lib
from stmoe.core import contract
from stmoe.routers import quantile_balancing

E, K, T = 8, 2, 64
LOGITS = jax.random.normal(jax.random.key(0), (2, T // 2, E)) + jnp.linspace(-1.5, 1.5, E)
MASK = np.ones((2, T // 2), bool)


def build(**fields):
  return quantile_balancing.QuantileBalancing(4, num_experts=E, k=K, rngs=nnx.Rngs(0), **fields)


@jax.jit
def decide(router, logits, mask):
  whole = jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)
  ctx = contract.Context(mask=mask, ids=whole, positions=whole, segments=mask.astype(jnp.int32),
                         step=jnp.int32(0), tokens=jnp.float32(T))
  return router.decide(logits, ctx, {}).aux


@pytest.mark.parametrize('bins', [1000, None])
def test_a_few_steps_balance(bins):
  router = build(bins=bins)
  worst = []
  for _ in range(4):
    aux = decide(router, LOGITS, MASK)
    worst.append(float(aux.load.max() / (T * K / E) - 1))
    router.commit(aux)
    np.testing.assert_allclose(router.bias[...].mean(), 0, atol=1e-5)
  assert worst[0] > 1.5 and worst[3] < 0.3, worst


def test_the_histogram_is_that_of_the_whole_step():
  halves = [decide(build(), LOGITS, MASK & (np.arange(2) == half)[:, None]) for half in (0, 1)]
  together = jax.tree.map(lambda *x: jnp.stack(x), *[aux.statistics['required'] for aux in halves]).together()
  whole = decide(build(), LOGITS, MASK)
  np.testing.assert_array_equal(together.value, whole.statistics['required'].value)


def test_the_histogram_gives_the_quantile_within_its_parts():
  required, bias = jax.random.uniform(jax.random.key(1), (4, 250, 3)) - 0.5, jnp.array([-0.5, 0.0, 0.5])
  mask = jnp.ones((4, 250), bool)
  found = bias_lib.of_histogram(bias_lib.histogram(required, mask, bias, 100), bias, 1)
  np.testing.assert_allclose(found, bias_lib.quantile(required, mask, 1), atol=1e-2)


def test_a_bias_moves_by_the_share_that_the_average_leaves():
  fast, slow = build(), build(ema=0.75)
  for router in (fast, slow):
    router.commit(decide(router, LOGITS, MASK))
  np.testing.assert_allclose(slow.bias[...], fast.bias[...] / 4, atol=1e-6)
  before = fast.bias[...]
  fast.commit(decide(fast, LOGITS, np.zeros_like(MASK)))             # no token: nothing is known
  np.testing.assert_array_equal(fast.bias[...], before)


def test_quantiles_by_hand():
  required = jnp.array([[[4.0, 0.0], [3.0, 1.0], [2.0, 2.0], [1.0, 3.0]]])
  mask = jnp.array([[True, True, True, False]])
  assert bias_lib.quantile(required, mask, 1).tolist() == [3.0, 1.0]               # floor(3/2) exceed it
  assert bias_lib.quantile(required, jnp.ones_like(mask), 1).tolist() == [2.0, 1.0]


def test_impossible_fields():
  with pytest.raises(errors.UserError, match='k=9 with num_experts=8; k is at least 1 and at most 8'):
    quantile_balancing.QuantileBalancing(4, num_experts=8, k=9, rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match='normalize_gates=True with k=1.*nearest: normalize_gates=False'):
    quantile_balancing.QuantileBalancing(4, num_experts=8, k=1, rngs=nnx.Rngs(0))
