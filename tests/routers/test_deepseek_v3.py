"""DeepSeek-V3 on an example worked by hand: the bias selects and does nothing else."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import contract
from stmoe.routers import deepseek_v3

SCORES = np.array([[0.8, 0.6, 0.5, 0.1], [0.2, 0.3, 0.4, 0.1], [0.9, 0.1, 0.6, 0.5], [0.7, 0.4, 0.2, 0.3]])
LOGITS = jnp.asarray(np.log(SCORES / (1 - SCORES))[None], jnp.float32)
ALL = np.ones((1, 4), bool)
FIELDS = ('k', 'num_groups', 'kept_groups', 'normalize_gates', 'route_scale')
route = jax.jit(deepseek_v3.deepseek_v3, static_argnames=FIELDS)


def chosen(a):
  """Dict (token, expert) -> weight of the live edges."""
  listed = zip(a.token[0].tolist(), a.expert[0].tolist(), a.weight[0].tolist())
  return {(t, e): round(w, 4) for t, e, w in listed if e < 4}


def test_by_hand():
  # Biased scores: expert 0 loses 1, expert 3 wins 0.5.
  a, aux = route(LOGITS, jnp.array([-1.0, 0.0, 0.0, 0.5]), ALL, k=2)
  # Token 0: -0.2 0.6 0.5 0.6 -> 1, 3; token 1: -0.8 0.3 0.4 0.6 -> 3, 2; token 2: -0.1 0.1 0.6 1.0 -> 3, 2;
  # token 3: -0.3 0.4 0.2 0.8 -> 3, 1. Weights are the plain scores over their sum.
  pairs = {(0, 1): 0.6 / 0.7, (0, 3): 0.1 / 0.7, (1, 3): 0.1 / 0.5, (1, 2): 0.4 / 0.5, (2, 3): 0.5 / 1.1,
           (2, 2): 0.6 / 1.1, (3, 3): 0.3 / 0.7, (3, 1): 0.4 / 0.7}
  assert chosen(a) == {edge: round(w, 4) for edge, w in pairs.items()}
  assert aux.load.tolist() == [0, 2, 2, 4] and aux.metrics['bias_abs_max'] == 1
  # f = load / 2; P: means of scores over their token's sum (2.0, 1.0, 2.1, 1.6).
  p = (SCORES / SCORES.sum(1, keepdims=True)).mean(0)
  np.testing.assert_allclose(aux.losses['balance'], p @ [0, 1, 1, 2], rtol=1e-5)


def test_raw_gates_and_scale():
  a, _ = route(LOGITS, jnp.zeros(4), ALL, k=1, normalize_gates=False, route_scale=2.5)
  assert chosen(a) == {(0, 0): 2.0, (1, 2): 1.0, (2, 0): 2.25, (3, 0): 1.75}


def test_rejected_nodes_stay_rejected_when_biased_scores_are_negative():
  # All biased scores below 0: a rejected node masked with 0 would be chosen first.
  a, _ = route(LOGITS, jnp.full(4, -3.0), ALL, k=2, num_groups=2, kept_groups=1)
  # Sums of two: (1.4, 0.6), (0.5, 0.5): the first on a tie, (1.0, 1.1), (1.1, 0.5).
  assert set(chosen(a)) == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 0), (3, 1)}


def test_nothing_flows_to_the_bias():
  gradient = jax.grad(lambda bias: route(LOGITS, bias, ALL, k=2)[0].weight.sum()
                      + route(LOGITS, bias, ALL, k=2)[1].losses['balance'])(jnp.zeros(4))
  assert not jnp.any(gradient)


def test_commit_moves_the_bias_by_the_load():
  router = deepseek_v3.DeepSeekV3(8, num_experts=4, rate=0.5, rngs=nnx.Rngs(0))
  report = lambda *load: contract.Aux(losses={}, load=jnp.array(load), metrics={})
  router.commit(report(4.0, 2.0, 1.0, 1.0))
  assert router.bias[...].tolist() == [-0.5, 0.0, 0.5, 0.5]
  frozen = deepseek_v3.DeepSeekV3(8, num_experts=4, rate=0.0, rngs=nnx.Rngs(0))
  frozen.commit(report(4.0, 2.0, 1.0, 1.0))
  assert not jnp.any(frozen.bias[...])
  # Frozen after two steps: the third changes nothing.
  router = deepseek_v3.DeepSeekV3(8, num_experts=4, rate=0.5, freeze_after=2, rngs=nnx.Rngs(0))
  seen = []
  for _ in range(3):
    router.commit(report(4.0, 2.0, 1.0, 1.0))
    seen.append(router.bias[...].tolist())
  assert seen == [[-0.5, 0.0, 0.5, 0.5], [-1.0, 0.0, 1.0, 1.0], [-1.0, 0.0, 1.0, 1.0]]


@pytest.mark.parametrize('fields, said', [
    (dict(k=5), 'router deepseek_v3: k=5'), (dict(num_groups=4), 'groups of at least 2; nearest: 1, 2'),
    (dict(k=3, num_groups=2, kept_groups=1), 'k=3 needs at least 2')])
def test_bad_fields(fields, said):
  with pytest.raises(errors.UserError, match=said):
    deepseek_v3.DeepSeekV3(8, num_experts=4, rngs=nnx.Rngs(0), **fields)
