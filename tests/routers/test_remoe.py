"""ReMoE by numbers worked by hand: gates, the loss, and one coefficient for all layers."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import router_state
from stmoe.core import contract
from stmoe.routers import remoe

LOGITS = np.array([[[2, -1, 1], [0, -1, -2], [4, 3, -1], [9, 9, 9]]], np.float32)
MASK = np.array([[True, True, True, False]])


def test_gates_are_logits_and_experts_with_many_tokens_are_pressed():
  @jax.jit
  def route(logits):
    a, aux = remoe.remoe(logits, 0.5, MASK, 2)
    return aux.losses['sparsity'], (a, aux)
  (_, (a, aux)), grad = jax.value_and_grad(route, has_aux=True)(LOGITS)
  dense = np.zeros((4, 4))
  dense[a.token[0], a.expert[0]] = a.weight[0]
  assert dense[:, :3].tolist() == [[2, 0, 1], [0, 0, 0], [4, 3, 0], [0, 0, 0]]
  assert aux.load.tolist() == [2, 1, 1] and aux.metrics['left_behind'] == np.float32(1 / 3)
  assert a.rows_per_group == 4 * 2 and aux.statistics['sparse'].scope == 'model'
  # 3 / (2 x 9) (6 x 2 + 3 x 1 + 1 x 1) = 8 / 3; its gradient at an open gate is the expert's tokens over 6.
  np.testing.assert_allclose(aux.losses['sparsity'], 0.5 * 8 / 3, rtol=1e-6)
  expected = 0.5 / 6 * np.array([[2, 0, 1], [0, 0, 0], [2, 1, 0], [0, 0, 0]])
  np.testing.assert_allclose(grad[0], expected, rtol=1e-6)
  np.testing.assert_allclose([aux.metrics[name] for name in ('sparsity', 'active_experts', 'coefficient')],
                             [5 / 9, 4 / 3, 0.5], rtol=1e-6)


def report(zeros, count, scope='model'):
  sparse = contract.mean(jnp.float32(zeros), jnp.float32(count), scope)
  return contract.Aux(losses={}, load=jnp.ones(4), metrics={}, statistics=dict(sparse=sparse))


def build(**fields):
  return remoe.ReMoE(4, num_experts=4, rngs=nnx.Rngs(0), **fields)


@pytest.mark.parametrize('zeros, moved', [(5, 1 / 1.2), (4, 1.2)])
def test_all_layers_have_one_coefficient(zeros, moved):
  """Three quarters of the gates are to be zero: of both layers 12 of 16, of the first alone 6 of 8."""
  joint = router_state.across(dict(a=report(zeros, 8), b=report(7, 8)))
  for one in joint.values():
    router = build(initial=1.0)
    router.commit(one)
    np.testing.assert_allclose(router.coefficient[...], moved, rtol=1e-6)
  own = router_state.across(dict(a=report(5, 8, 'layer'), b=report(7, 8, 'layer')))
  assert [float(one.statistics['sparse'].value) for one in own.values()] == [5 / 8, 7 / 8]


def test_the_coefficient_never_becomes_nothing():
  router = build(initial=1.3e-38)
  router.commit(report(8, 8))
  router.commit(report(0, 8))
  assert router.coefficient[...] > 1.4e-38
  with pytest.raises(errors.UserError, match='k=5 with num_experts=4'):
    build(k=5)
