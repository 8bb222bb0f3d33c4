"""Loss-free balancing on an example worked by hand: choice by score and bias, counts, the update."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import bias as bias_lib
from stmoe.core import contract
from stmoe.routers import loss_free_balancing

SCORES = np.array([[0.8, 0.6, 0.1], [0.7, 0.3, 0.2], [0.9, 0.5, 0.4], [0.6, 0.2, 0.5]])
LOGITS = jnp.asarray(np.log(SCORES / (1 - SCORES))[None], jnp.float32)
ALL = np.ones((1, 4), bool)
route = jax.jit(loss_free_balancing.loss_free_balancing, static_argnums=(3, 4),
                static_argnames=('scores', 'selection', 'normalize_gates', 'least_sum'))


def chosen(a):
  """Dict (token, expert) -> weight of the live edges."""
  listed = zip(a.token[0].tolist(), a.expert[0].tolist(), a.weight[0].tolist())
  return {(t, e): round(w, 4) for t, e, w in listed if e < 3}


def test_by_hand():
  a, aux = route(LOGITS, jnp.zeros(3), ALL, 4, 1)
  assert chosen(a) == {(0, 0): 0.8, (1, 0): 0.7, (2, 0): 0.9, (3, 0): 0.6}
  # Mean load 4/3: expert 0 goes down, the others up; then token 0 turns to 1 and token 3 to 2.
  bias = bias_lib.update(jnp.zeros(3), aux.load, 0.15)
  np.testing.assert_allclose(bias, [-0.15, 0.15, 0.15])
  a, aux = route(LOGITS, bias, ALL, 4, 1)
  assert chosen(a) == {(0, 1): 0.6, (1, 0): 0.7, (2, 0): 0.9, (3, 2): 0.5}         # the scores, not the bias
  np.testing.assert_allclose(aux.metrics['bias_abs_max'], 0.15)
  np.testing.assert_allclose(bias_lib.update(bias, aux.load, 0.15), [-0.3, 0.3, 0.3])


def test_counts_come_before_drops_and_leave_padding_out():
  a, aux = route(LOGITS, jnp.zeros(3), np.array([[True, True, True, False]]), 1, 1)
  assert chosen(a) == {(0, 0): 0.8} and aux.load.tolist() == [3, 0, 0]
  np.testing.assert_allclose(aux.metrics['drop_frac'], 2 / 3, rtol=1e-6)


def test_balance_is_one_where_every_choice_is_as_probable():
  _, aux = route(jnp.zeros((1, 4, 3)), jnp.zeros(3), ALL, 4, 2)      # f = (1, 1, 0), P = 1/3: 3 * 2/3 / 2
  np.testing.assert_allclose(aux.losses['balance'], 1.0, rtol=1e-6)


def test_variants():
  a, _ = route(LOGITS, jnp.zeros(3), ALL, 4, 2, scores='softmax')
  probs = jax.nn.softmax(LOGITS[0])
  np.testing.assert_allclose(chosen(a)[0, 0], probs[0, 0], atol=1e-4)
  # Times 1 + b: 0.8, 1.2, 0.1 for token 0; 0.6, 0.4, 0.5 for token 3.
  a, _ = route(LOGITS, jnp.array([0.0, 1.0, 0.0]), ALL, 4, 1, selection='multiply')
  assert chosen(a) == {(0, 1): 0.6, (1, 0): 0.7, (2, 1): 0.5, (3, 0): 0.6}
  a, _ = route(LOGITS, jnp.zeros(3), ALL, 4, 2, normalize_gates=True)
  assert chosen(a)[3, 0] == round(0.6 / 1.1, 4)


def test_no_sum_of_gates_is_taken_as_smaller_than_the_least():
  """Token 0 has scores 0.8 and 0.6, token 3 has 0.6 and 0.5, and 1.2 is the least sum."""
  a, _ = route(LOGITS, jnp.zeros(3), ALL, 4, 2, normalize_gates=True, least_sum=1.2)
  assert chosen(a)[0, 0] == round(0.8 / 1.4, 4) and chosen(a)[3, 0] == round(0.6 / 1.2, 4)
  a, _ = route(LOGITS, jnp.zeros(3), ALL, 4, 1, normalize_gates=True, least_sum=0.0)
  assert set(chosen(a).values()) == {1.0}                            # a single gate, too


def test_gates_are_said_to_add_up_to_1_only_where_they_do():
  def said(**fields):
    fields = dict(num_experts=4, k=2, scores='softmax', normalize_gates=True) | fields
    router = loss_free_balancing.LossFreeBalancing(8, **fields, rngs=nnx.Rngs(0))
    return contract.offered(router, 'normalize_gates')
  assert [said(least_sum=least) for least in (None, 1e-12, 0.5, 0.6)] == [True, True, True, None]
  assert said(normalize_gates=False, least_sum=0.6) is False         # which is then not read


def test_commit_by_each_rule():
  aux = contract.Aux(losses={}, load=jnp.array([3.0, 0.0, 0.0]), metrics={})
  for fields, expected in ((dict(), [-1, 1, 1]), (dict(rule='magnitude'), [-2, 1, 1]),
                           (dict(centred=True), [-4 / 3, 2 / 3, 2 / 3])):
    router = loss_free_balancing.LossFreeBalancing(8, num_experts=3, rate=1.0, rngs=nnx.Rngs(0), **fields)
    router.commit(aux)
    np.testing.assert_allclose(router.bias[...], expected, rtol=1e-6)


def test_a_skew_is_cancelled_in_skew_over_rate_steps():
  # Every token scores expert 0 by 0.25 higher: with u = 0.0125 that is half of 20 steps, each side moving.
  scores = np.full((1, 64, 2), 0.5, np.float32) + [0.25, 0.0]
  scores += np.random.default_rng(0).uniform(-0.05, 0.05, scores.shape)
  logits, bias, vio = jnp.log(scores / (1 - scores)), jnp.zeros(2), []
  for _ in range(14):
    load = route(logits, bias, np.ones((1, 64), bool), 64, 1)[1].load
    vio.append(float(load.max() / 32 - 1))
    bias = bias_lib.update(bias, load, 0.0125)
  assert vio[0] == vio[5] == 1 and max(vio[10:]) < 0.5


@pytest.mark.parametrize('fields, said', [
    (dict(k=5), 'router loss_free_balancing: k=5 with num_experts=4'),
    (dict(scores='tanh'), "scores has no choice 'tanh'"), (dict(rule='sgn'), "rule has no choice 'sgn'"),
    (dict(selection='multipl'), 'nearest: multiply')])
def test_bad_fields(fields, said):
  with pytest.raises(errors.UserError, match=said):
    loss_free_balancing.LossFreeBalancing(8, num_experts=4, rngs=nnx.Rngs(0), **fields)
