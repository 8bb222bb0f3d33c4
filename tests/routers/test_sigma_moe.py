"""The sigmoid router of sigma-MoE by numbers worked by hand; its contract is that of every router."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import lookup
from stmoe.core import assignment
from stmoe.errors import UserError
from stmoe.routers import sigma_moe

# Two sequences of two tokens: the first is balanced, the second sends all to expert 0. One token of padding.
LOGITS = jnp.array([[[20.0, 0.0], [0.0, 20.0], [20.0, 0.0], [20.0, 0.0], [20.0, 0.0]]])
MASK = jnp.array([[True, True, True, True, False]])
SEQUENCE = jnp.array([[0, 0, 1, 1, 2]])


def test_gates_are_sigmoids_and_the_loss_is_of_sequences():
  a, aux = sigma_moe.sigma_moe(LOGITS, MASK, 2, sequence=SEQUENCE)
  weights = assignment.masks(a)[1].sum(-1)                           # [G, S, E]
  np.testing.assert_allclose(weights[0, :2], [[1, 0.5], [0.5, 1]], rtol=1e-6)
  assert not weights[0, 4].any()
  assert aux.load.tolist() == [4, 4]
  # Sequence 0: P = (1/2, 1/2), sum P ln P = -ln 2; sequence 1: P = (1, 0), 0. Equally many tokens.
  np.testing.assert_allclose(aux.losses['entropy'], -np.log(2) / 2, rtol=1e-5)
  together = sigma_moe.sigma_moe(LOGITS, MASK, 2)[1].losses['entropy']             # P = (3/4, 1/4)
  np.testing.assert_allclose(together, 0.75 * np.log(0.75) + 0.25 * np.log(0.25), rtol=1e-5)


def test_an_absent_expert_is_not_chosen_and_gates_stay():
  absent = jnp.zeros(LOGITS.shape, bool).at[0, 0, 0].set(True)
  a, _ = sigma_moe.sigma_moe(LOGITS, MASK, 1, absent)
  weights = assignment.masks(a)[1].sum(-1)
  np.testing.assert_allclose(weights[0, :2], [[0, 0.5], [0, 1]], rtol=1e-6)


def test_the_loss_of_certain_experts_has_a_gradient_without_nan():
  loss = lambda logits: sigma_moe.sigma_moe(logits, MASK, 1)[1].losses['entropy']
  assert np.isfinite(jax.grad(loss)(100 * LOGITS)).all()


def test_experts_begin_with_equal_lengths():
  def build(width, **fields):
    return lookup.recipe('router', dict(fields, name='sigma_moe'))(width, rngs=nnx.Rngs(0))

  router = build(64, num_experts=8, init_scale=4.0)
  lengths = jnp.linalg.norm(router.w[...], axis=0)
  np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)
  assert abs(router.w[...].std() / (4.0 / 64) ** 0.5 - 1) < 0.1
  with pytest.raises(UserError, match='k=3 with num_experts=2; k is at least 1 and at most 2'):
    build(8, num_experts=2, k=3)
