"""No-token-left-behind on examples worked by hand."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.routers import ntlb

ALL = np.ones((1, 4), bool)


def test_a_dropped_token_takes_its_second_choice(logits, edges):
  a, aux = ntlb.ntlb(logits, ALL, 2, 2)
  # Token 2 finds expert 0 full and goes to expert 1 with its probability there, behind token 3.
  assert edges(a) == {(0, 0, 0, 0.8), (1, 0, 1, 0.6), (3, 1, 0, 0.9), (2, 1, 1, 0.3)}
  assert aux.load.tolist() == [3, 1] and aux.metrics['drop_frac'] == 0
  # Every token counts at both experts: f = (1, 1), so 2 * (0.55 + 0.45) / 2 rounds.
  np.testing.assert_allclose(aux.losses['balance'], 1.0, rtol=1e-6)


def test_second_choices_wait_for_all_first_choices():
  # Tokens 0 and 1 want expert 0 (C = 1), so does 2; token 3 wants expert 1. Expert 1 has one slot: token 3's.
  choice = jnp.array([[[0, 1], [0, 1], [0, 1], [1, 0]]])
  kept = ntlb.rounds(choice, ALL, 2, 1)
  assert kept.astype(int).tolist() == [[[1, 0], [0, 0], [0, 0], [1, 0]]]


def test_one_round_is_switch_and_rounds_are_at_most_experts(logits, edges):
  a, aux = ntlb.ntlb(logits, ALL, 2, 1)
  assert edges(a) == {(0, 0, 0, 0.8), (1, 0, 1, 0.6), (3, 1, 0, 0.9)}
  np.testing.assert_allclose(aux.losses['balance'], 1.05, rtol=1e-6)
  assert ntlb.Ntlb(8, num_experts=2, rngs=nnx.Rngs(0)).num_rounds == 2


def test_jitter_in_training_only(call, context):
  router = ntlb.Ntlb(8, num_experts=2, jitter=0.5, rngs=nnx.Rngs(0))
  weights = lambda train: np.asarray(call(router, jnp.ones((1, 4, 8)), context(
      ALL, key=jax.random.key(0), train=train)).assignment.weight[0, :4])
  # Equal tokens, of which the router sees unequal views.
  assert len(set(weights(True).tolist())) == 4 and len(set(weights(False).tolist())) == 1
