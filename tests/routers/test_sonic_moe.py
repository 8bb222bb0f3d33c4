"""Token rounding on cases worked by hand, and as a training option that evaluation does not know."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import assignment
from stmoe.routers import sonic_moe


def test_each_expert_gets_the_nearest_multiple_of_the_tile():
  # First choices: expert 0 has 5 of 8 tokens and expert 1 has 3; tiles of 4 make that 4 and 4.
  first = jnp.array([0.95, 0.9, 0.8, 0.7, 0.55, 0.45, 0.3, 0.2])
  probs = jnp.stack([first, 1 - first], -1)[None]                    # [1, 8, 2]
  edges = sonic_moe.rounded(probs, jnp.argmax(probs, -1, keepdims=True), jnp.ones((1, 8), bool), 4)
  live = edges.expert[0] < 2
  got = {(int(e), int(t)) for e, t in zip(edges.expert[0][live], edges.token[0][live])}
  # Expert 0 drops its weakest token 4, expert 1 adds that one, the strongest it did not have.
  assert got == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 7), (1, 6), (1, 5), (1, 4)}
  weight = {(int(e), int(t)): float(w) for e, t, w in zip(edges.expert[0], edges.token[0], edges.weight[0])}
  assert weight[1, 4] == pytest.approx(0.45)


def test_counts_are_multiples_and_change_by_at_most_half_a_tile():
  probs = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 64, 6)))
  mask = jnp.arange(64) < jnp.array([[64], [51]])
  choice = jax.lax.top_k(probs, 2)[1]
  a = assignment.cap(sonic_moe.rounded(probs, choice, mask, 8), 64)
  count = np.asarray(a.masks()[0].sum((1, 3)))                       # [G, E]
  wanted = np.asarray((jax.nn.one_hot(choice, 6).sum(2) * mask[..., None]).sum(1))
  assert (count % 8 == 0).all() and (np.abs(count - wanted) <= 4).all() and (count != wanted).any()
  assert not np.asarray(a.masks()[0])[~np.asarray(mask)].any()
  pairs = np.asarray(a.masks()[0].sum(-1))
  assert pairs.max() == 1                                            # a token is at an expert once


def test_all_padding_and_too_few_tokens_leave_nothing():
  probs = jnp.full((1, 4, 2), 0.5)
  choice = jnp.zeros((1, 4, 1), jnp.int32)
  for mask in (jnp.zeros((1, 4), bool), jnp.ones((1, 4), bool)):
    assert (sonic_moe.rounded(probs, choice, mask, 16).expert == 2).all()


def test_evaluation_does_not_round(call, context):
  router = sonic_moe.SonicMoE(4, num_experts=3, k=1, tile=4, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(1), (1, 8, 4))
  routed = lambda train: call(router, x, context(jnp.ones((1, 8), bool), train=train)).assignment
  count = lambda train: np.asarray(routed(train).masks()[0].sum((1, 3)))
  assert (count(True) % 4 == 0).all() and count(False).sum() == 8


def test_the_balance_loss_counts_every_choice(call, context):
  router = sonic_moe.SonicMoE(4, num_experts=3, k=2, tile=4, rngs=nnx.Rngs(0))
  router.w[...] = jnp.zeros_like(router.w[...])
  aux = call(router, jnp.ones((1, 8, 4)), context(jnp.ones((1, 8), bool))).aux
  np.testing.assert_allclose(aux.losses['balance'], 2.0, rtol=1e-6)  # f = (1, 1, 0), P = 1/3: 3 * 2/3


@pytest.mark.parametrize('wrong, message', [
    (dict(k=5), 'k is at least 1 and at most 3'), (dict(tile=0), 'nearest: tile=128')])
def test_mistakes(wrong, message):
  with pytest.raises(errors.UserError, match=message):
    sonic_moe.SonicMoE(4, num_experts=3, **wrong, rngs=nnx.Rngs(0))
