"""Capacity buffers by gathers only, in both directions.

Every edge owns at most one slot and every slot at most one edge. So dispatch, combine and
the transposes of both are gathers. Tokens go to slots by the edge that a slot holds.
Slots go to tokens by the slot of each of a token's k edges. Differentiating
a gather would give scatter-adds instead, which are slow on accelerators; hence one
custom_vjp around everything from dispatch to combine. When `choices` is None (expert
choice) a token has any number of edges, and sums over these edges are segment sums.
"""

import jax
import jax.numpy as jnp

from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core.transport import layouts
from stmoe.core.transport import rows as rows_lib


def execute(x: jax.Array, a: assignment.Assignment, experts: contract.Bank,
            key: jax.Array | None = None) -> jax.Array:
  """Returns y[g,s] = sum over edges (s -> e) of weight * expert_e(x[g,s]).

  Args:
    x:       [G,S,D] activations.
    a:       Assignment.
    experts: a bank, `experts(rows, key) -> rows`.
    key:     PRNG key for dropout inside experts, or None.
  Returns:
    [G,S,D'] in the dtype of x, D' the width of the bank's rows; tokens without a live edge get zeros.
  """
  weight = jnp.where(assignment.live(a), a.weight, 0)                # dead weights may be NaN
  with jax.named_scope('dispatch'):
    edge, filled = _slots(a)                                         # [G, E, C] twice
  return _execute(x, weight, experts, a.replace(weight=None), edge, filled, key)


def _slots(a):
  """i32[G,E*C] edge that every slot holds, bool[G,E*C] whether the slot holds an edge."""
  groups, num = a.expert.shape
  place = jnp.where(assignment.live(a), a.expert * a.capacity + a.slot, a.num_experts * a.capacity)
  edge = jnp.broadcast_to(jnp.arange(num, dtype=jnp.int32), (groups, num))
  _, edge = jax.lax.sort((place, edge), num_keys=1, is_stable=False) # [G, N] by expert, by slot
  used = rows_lib.used_slots(a)                                      # [G, E]
  start = jnp.cumsum(used, axis=1) - used                            # [G, E]
  slot = jnp.arange(a.capacity)
  filled = (slot < used[..., None]).reshape(groups, -1)              # [G, E*C]
  at = (start[..., None] + slot).reshape(groups, -1)                 # [G, E*C]
  return jnp.take_along_axis(edge, jnp.where(filled, at, 0), axis=1), filled


@jax.custom_vjp
def _execute(x, weight, experts, a, edge, filled, key):
  return _forward(x, weight, experts, a, edge, filled, key)[0]


def _forward(x, weight, experts, a, edge, filled, key):
  with jax.named_scope('dispatch'):
    token = _pick(a.token, edge)                                     # [G, E*C]
    rows = _to_experts(jnp.where(filled[..., None], _pick(x, token), 0), a)
  with jax.named_scope('experts'):
    run = lambda experts, rows: experts(layouts.Buckets(rows), key).x
    y, pull = jax.vjp(run, experts, rows)                            # [E, G*C, D]
    y = _to_groups(y, a)                                             # [G, E*C, D]
  with jax.named_scope('combine'):
    out = _pick(y, _place(a)).astype(jnp.float32) * weight[..., None]  # [G, N, D]
    out = rows_lib.add_up(out, a).astype(x.dtype)                    # [G, S, D]
  return out, (weight, a, edge, filled, token, y, pull)


def _backward(saved, dout):
  weight, a, edge, filled, token, y, pull = saved
  with jax.named_scope('combine'):
    dout = _pick(dout, token)                                        # [G, E*C, D]
    dweight = (y.astype(jnp.float32) * dout).sum(-1)                 # [G, E*C]
    dweight = jnp.where(assignment.live(a), _pick(dweight, _place(a)), 0)   # [G, N]
    gate = jnp.where(filled, _pick(weight, edge), 0)[..., None]      # [G, E*C, 1]
    dy = _to_experts((dout * gate).astype(y.dtype), a)               # [E, G*C, D]
  with jax.named_scope('experts'):
    dexperts, drows = pull(dy)
  with jax.named_scope('dispatch'):
    dx = _pick(_to_groups(drows, a), _place(a))                      # [G, N, D]
    dx = jnp.where(assignment.live(a)[..., None], dx, 0)
    dx = rows_lib.add_up(dx.astype(jnp.float32), a).astype(drows.dtype)    # [G, S, D]
  return dx, dweight.astype(weight.dtype), dexperts, None, None, None, None


_execute.defvjp(_forward, _backward)


def _pick(x, at):
  """x[g, at[g]]: [G,N,...] or [G,N] by i32[G,K] in range -> [G,K,...]."""
  return jax.vmap(lambda x, at: x.at[at].get(mode='promise_in_bounds'))(x, at)


def _place(a):
  """i32[G,N] slot of every edge among the E*C of its group; 0 for edges without a slot."""
  return jnp.where(assignment.live(a), a.expert * a.capacity + a.slot, 0)


def _to_experts(rows, a):
  """[G,E*C,D] -> [E,G*C,D]."""
  groups, _, width = rows.shape
  rows = rows.reshape(groups, a.num_experts, a.capacity, width).swapaxes(0, 1)
  return rows.reshape(a.num_experts, groups * a.capacity, width)


def _to_groups(rows, a):
  """[E,G*C,D] -> [G,E*C,D]."""
  rows = rows.reshape(a.num_experts, -1, a.capacity, rows.shape[-1]).swapaxes(0, 1)
  return rows.reshape(rows.shape[0], a.num_experts * a.capacity, -1)
