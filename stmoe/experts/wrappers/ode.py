"""A bank of neural ordinary differential equations: its experts integrate the vector fields of a bank."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.transport import layouts
from stmoe.errors import UserError

Derivative = typing.Callable[[jax.Array, jax.Array], jax.Array]      # (time [], state [...]) -> [...]


def rk4(derivative: Derivative, times: jax.Array, state: jax.Array, substeps: int = 1,
        last: float = 1.0) -> jax.Array:
  """Returns [T,...], the states at the times f32[T] by the classical Runge-Kutta method of order 4.

  The first of them is `state` [...], at the first time. Between two times there are `substeps` equal steps.

  Args:
    last: at how many steps after its beginning a step evaluates its fourth stage. MixER's released code has
      2.0, which differs where the derivative depends on time explicitly.
  """
  def between(state, ends):
    begin, end = ends
    h = (end - begin) / substeps

    def step(y, number):
      t = begin + number * h
      k1 = derivative(t, y)
      k2 = derivative(t + h / 2, y + h / 2 * k1)
      k3 = derivative(t + h / 2, y + h / 2 * k2)
      k4 = derivative(t + last * h, y + h * k3)
      return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None
    state, _ = jax.lax.scan(step, state, jnp.arange(substeps))
    return state, state

  _, later = jax.lax.scan(between, state, (times[:-1], times[1:]))
  return jnp.concatenate([state[None], later])                       # [T, ...]


class Ode(nnx.Module):
  """The bank `inner` as vector fields: an expert follows a trajectory from its first state for T steps.

  Rows [.,T n+C] hold the first state n numbers wide, anything, and last a context of C numbers, which stays
  with the trajectory (MixER, arXiv:2502.05335). Outputs [.,T n] are the T states after the first. A row is
  dispatched once, whatever the length of its trajectory.

  Args:
    d_model:    T n + C.
    inner:      recipe of a bank of rows [.,n+C], of which the first n numbers that it gives are the
      derivative: `geps`, `coda`, `ncf`, or any bank whose arrays are all of experts.
    num_values: n, numbers of a state.
    step:       time between two states.
    substeps:   steps of the solver between two states, see `rk4`.
    context:    C.
  Differs: the reference integrates with adaptive steps (Tsit5) or with this solver, which is its helper.
  """

  def __init__(self, d_model: int, *, num_experts, inner: ranges.Named('experts'),
               num_values: ranges.Count = 1, step: ranges.Positive = 0.1, substeps: ranges.Count = 1,
               context: ranges.Natural = 0, rngs):
    width = d_model - context
    if width % num_values or not width:
      near = max(width // num_values, 1) * num_values
      raise UserError(f'experts ode: num_values={num_values} numbers of a state do not divide trajectories '
                      f'of {width}; nearest: trajectories of {near}')
    fields = dict(context=context) if context and lookup.takes(inner, 'context') else {}
    self.inner = inner(num_values + context, num_experts=num_experts, rngs=rngs, **fields)
    if not all(jax.tree.leaves(axes.per_expert(self.inner))):
      raise UserError(f'experts ode: some arrays of inner={type(self.inner).__name__} are of all experts; '
                      'nearest: geps')
    self.num_values, self.context = num_values, context
    self.length, self.step, self.substeps = width // num_values, step, substeps
    stages = 4 * substeps * self.length
    self.inner.products_per_row = stages * (contract.offered(self.inner, 'products_per_row') or sum(
        w.size // num_experts for w in jax.tree.leaves(nnx.state(self.inner, nnx.Param)) if w.ndim == 3))

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,T n+C] -> [.,T n] in the same layout."""
    leaves, tree = jax.tree.flatten(self.inner)

    def follow(x, *arrays):
      field = jax.tree.unflatten(tree, [array[None] for array in arrays])
      state, context = x[:, :self.num_values], x[:, x.shape[1] - self.context:]

      def derivative(time, state):
        given = jnp.concatenate([state, context], axis=1)[None]      # [1, R, n+C]
        return field(layouts.Buckets(given)).x[0, :, :self.num_values]
      times = jnp.arange(self.length + 1, dtype=x.dtype) * self.step
      states = rk4(derivative, times, state, self.substeps)[1:]      # [T, R, n]
      return states.swapaxes(0, 1).reshape(len(x), -1).astype(x.dtype)
    return rows.each(follow, *leaves)
