"""Integrated experts: the solver's order, contexts and their parts, the same in every executor, mistakes."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.core import banks
from stmoe.core.transport import layouts
from stmoe.core.units import conditions
from stmoe.experts import ncf
from stmoe.experts.wrappers import ode

E, N, C, T = 2, 2, 4, 3


def build(inner, **fields):
  recipe = lookup.recipe('experts', dict(name='ode', num_values=N, step=0.1, inner=dict(inner)) | fields)
  bank = banks.made(recipe, T * N + C, num_experts=E, out=T * N, context=C, rngs=nnx.Rngs(0))
  for i, (_, value) in enumerate(nnx.to_flat_state(nnx.state(bank, nnx.Param))):
    value[...] += 0.1 * jax.random.normal(jax.random.key(i), value.shape)
  return bank


def test_the_solver_is_of_order_four():
  follow = lambda steps: ode.rk4(lambda t, y: y * jnp.cos(t), jnp.array([0.0, 1.0]), jnp.ones(()), steps)[1]
  with jax.enable_x64(True):
    wrong = [abs(float(follow(steps)) - float(np.exp(np.sin(1.0)))) for steps in (4, 8)]
  assert 12 < wrong[0] / wrong[1] < 20
  late = ode.rk4(lambda t, y: jnp.cos(t), jnp.array([0.0, 1.0]), jnp.zeros(()), 4, 2.0)[1]
  assert abs(float(late) - np.sin(1.0)) > 1e-3                       # as released


def test_an_expert_reads_its_own_part_of_the_context_alone():
  bank = build(dict(name='geps', d_ff=5, split=True))
  rows = jax.random.normal(jax.random.key(9), (E, 3, T * N + C))
  of_context = jax.jit(jax.grad(lambda x: jnp.sum(bank(layouts.Buckets(x)).x)))(rows)[..., -C:]
  used = np.asarray(jnp.abs(of_context).sum(1) > 0)                  # [E, C]
  np.testing.assert_array_equal(used, [[True, True, False, False], [False, False, True, True]])
  with pytest.raises(errors.UserError, match='a context of 4 numbers is not split into 3 .*; nearest: 3'):
    conditions.width('geps', 4, True, 3)


def test_any_bank_of_experts_is_a_field_and_shared_arrays_are_refused():
  bank = build(dict(name='mlp', d_ff=5))
  assert bank(layouts.Buckets(jnp.ones((E, 3, T * N + C)))).x.shape == (E, 3, T * N)
  with pytest.raises(errors.UserError, match='are of all experts; nearest: geps'):
    build(dict(name='lora', d_ff=5))
  make = functools.partial(lookup.recipe('experts', dict(name='ode', num_values=4, inner=dict(name='mlp',
                                                                                              d_ff=5))))
  with pytest.raises(errors.UserError, match='do not divide trajectories of 6; nearest: trajectories of 4'):
    make(T * N + C, num_experts=E, context=C, rngs=nnx.Rngs(0))


def test_widths_grow_in_geometric_steps():
  assert ncf.between(2, 6, 2) == [2, 4, 6] and ncf.between(3, 3, 1) == [3, 3]
