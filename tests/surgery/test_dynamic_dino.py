"""Dynamic-DINO: at the start every token has all slices of one copy, and the gates may move from 1."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.routers import dynamic_dino
from stmoe.surgery import dynamic_dino as surgery

X = jax.random.normal(jax.random.key(0), (1, 9, 6))
ROWS = np.random.default_rng(0).normal(size=(4, 6))


def route(gates='scaled'):
  logits = X @ surgery.columns(ROWS, 2)
  return dynamic_dino.dynamic_dino(logits, jnp.ones((1, 9), bool), 2, gates)[0]


def test_a_token_has_the_slices_of_one_copy_with_gates_of_one():
  a = route()
  for token in range(9):
    first, second = sorted(a.expert[0][a.token[0] == token].tolist())
    assert first % 2 == 0 and second == first + 1
  np.testing.assert_allclose(a.weight, 1, rtol=1e-6)
  assert len({*a.expert[0].tolist()}) > 4                            # of several copies


def test_gates_have_a_gradient_but_where_they_are_fixed():
  def slope(gates):
    weigh = lambda logits: (dynamic_dino.GATES[gates](logits) * jnp.arange(2.0)).sum()
    return jax.grad(weigh)(jnp.array([1.0, 1.0]))
  assert slope('scaled').tolist() == [-0.5, 0.5] and slope('ungated').tolist() == [0, 0]
  assert (route('ungated').weight == 1).all()
