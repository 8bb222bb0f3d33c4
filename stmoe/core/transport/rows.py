"""The live edges of an Assignment sorted by expert: one row per edge, and tables both ways.

Dropless executors run experts on these rows: the rows of expert 0, then of expert 1, and so on, or those of
the expert that has most rows first. There is no padding. No sort is needed, because slots have no holes. An
edge's row is the first row of its expert, plus the edges that earlier groups send there, plus its slot.
"""

import functools
import operator

from flax import struct
import jax
import jax.numpy as jnp

from stmoe.core import assignment
from stmoe.core.units import counting


@struct.dataclass
class Rows:
  """Where the rows of each expert lie; M = G*N rows, live rows first.

  edge:   i32[M] edge (of the flattened [G,N] list) that a row carries; 0 beyond the live rows.
  token:  i32[M] its token in [0, G*S); 0 beyond the live rows.
  row:    i32[G,N] row of an edge, M for edges that reach no expert.
  start:  i32[E] first row of an expert.
  sizes:  i32[E] rows of an expert.
  """
  edge: jax.Array
  token: jax.Array
  row: jax.Array
  start: jax.Array
  sizes: jax.Array


def sort(a: assignment.Assignment, falling: bool = False) -> Rows:
  """Returns the Rows of Assignment `a`; `falling`: the expert that has most rows comes first, and so on.

  Two groups of three tokens on two experts; the last token of the first group was dropped:

  >>> edges = assignment.from_choices(jnp.array([[[1], [0], [0]], [[0], [1], [0]]]), jnp.ones((2, 3, 1)), 2)
  >>> rows = sort(assignment.cap(edges, 1))
  >>> rows.row.tolist(), rows.token.tolist(), rows.sizes.tolist()
  ([[2, 0, 6], [1, 3, 6]], [1, 3, 0, 4, 0, 0], [2, 2])

  Three tokens, two of them on the second expert:

  >>> edges = assignment.from_choices(jnp.array([[[1], [1], [0]]]), jnp.ones((1, 3, 1)), 2)
  >>> sort(assignment.cap(edges, 2), falling=True).start.tolist()
  [2, 0]
  """
  groups, num = a.expert.shape
  live = assignment.live(a)                                          # [G, N]
  used = used_slots(a)                                               # [G, E]
  sizes = used.sum(0)                                                # [E]
  start = jnp.cumsum(sizes) - sizes                                  # [E]
  if falling:
    order = jnp.argsort(-sizes)
    start = jnp.zeros_like(sizes).at[order].set(jnp.cumsum(sizes[order]) - sizes[order], unique_indices=True)
  first = start + jnp.cumsum(used, axis=0) - used                    # [G, E] first row of a group
  expert = jnp.minimum(a.expert, a.num_experts - 1)
  row = jnp.where(live, jnp.take_along_axis(first, expert, axis=1) + a.slot, groups * num)
  edge = jnp.zeros(groups * num, jnp.int32).at[row.reshape(-1)].set(
      jnp.arange(groups * num, dtype=jnp.int32), mode='drop', unique_indices=True)
  token = a.token + jnp.arange(groups, dtype=jnp.int32)[:, None] * a.num_tokens
  token = jnp.where(jnp.arange(groups * num) < sizes.sum(), token.reshape(-1)[edge], 0)
  return Rows(edge=edge, token=token, row=row, start=start, sizes=sizes)


@jax.custom_vjp
def take(x: jax.Array, a: assignment.Assignment, rows: Rows) -> jax.Array:
  """Returns the rows [M,D] of tokens x [G,S,D]; rows beyond the live rows hold anything.

  The transpose, in gathers as well, is `add_up` of `give`.

  >>> edges = assignment.from_choices(jnp.array([[[1], [0]]]), jnp.ones((1, 2, 1)), 2)
  >>> a = assignment.cap(edges, 2)
  >>> take(jnp.array([[[5.], [7.]]]), a, sort(a)).tolist()
  [[7.0], [5.0]]
  """
  return x.reshape(-1, x.shape[-1])[rows.token]


@jax.custom_vjp
def give(y: jax.Array, a: assignment.Assignment, rows: Rows) -> jax.Array:
  """Returns [G,N,D]: of rows y [M,D] the row of every edge, zero where an edge has none.

  The transpose is a gather too.
  """
  return y.at[rows.row].get(mode='fill', fill_value=0)


def _give_backward(saved, dy):
  a, rows = saved
  dy = dy.reshape(-1, dy.shape[-1])[rows.edge]                       # [M, D]
  live = jnp.arange(rows.edge.size) < rows.sizes.sum()
  return jnp.where(live[:, None], dy, 0), None, None


def _take_backward(saved, drows):
  per_edge = give(drows, *saved).astype(jnp.float32)                 # [G, N, D]
  return add_up(per_edge, saved[0]).astype(drows.dtype), None, None


take.defvjp(lambda x, a, rows: (take(x, a, rows), (a, rows)), _take_backward)
give.defvjp(lambda y, a, rows: (give(y, a, rows), (a, rows)), _give_backward)


def used_slots(a: assignment.Assignment) -> jax.Array:
  """Returns i32[G,E]: how many edges of each group reach each expert.

  >>> edges = assignment.from_choices(jnp.array([[[1], [0], [1]]]), jnp.ones((1, 3, 1)), 3)
  >>> used_slots(assignment.cap(edges, 1)).tolist()
  [[1, 1, 0]]
  """
  return counting.counts(a.expert, a.num_experts)


def virtual_gates(a: assignment.Assignment) -> jax.Array:
  """Returns f32[G,S,Z]: the weight with which each token goes to each virtual expert, 0 where none goes.

  >>> expert, weight = jnp.array([[[0, 1], [2, 1]]]), jnp.full((1, 2, 2), 0.5)
  >>> virtual_gates(assignment.cap(assignment.from_choices(expert, weight, 1, num_virtual=2), 1)).tolist()
  [[[0.5, 0.0], [0.5, 0.5]]]
  """
  chosen = a.expert[..., None] == jnp.arange(a.num_experts, a.dead)  # [G, N, Z]
  return add_up(jnp.where(chosen, a.weight[..., None], 0), a)        # dead weights may be NaN


def add_up(rows: jax.Array, a: assignment.Assignment) -> jax.Array:
  """Returns the sum, for every token, of what its edges hold: [G,N,D] -> [G,S,D].

  With `choices` set this adds k slices (on CPUs XLA takes ten times as long for a reduction over k).
  Otherwise it is a segment sum over tokens, because a token may then have any number of edges.

  >>> edges = assignment.from_choices(jnp.array([[[0, 1], [0, 1]]]), jnp.ones((1, 2, 2)), 2)
  >>> add_up(jnp.array([[[1.], [2.], [10.], [20.]]]), edges).tolist()
  [[[11.0], [22.0]]]
  """
  groups, _, width = rows.shape
  if a.choices:
    return functools.reduce(operator.add, jnp.split(rows, a.choices, axis=1))
  at = (jnp.arange(groups)[:, None], a.token)
  return jnp.zeros((groups, a.num_tokens, width), rows.dtype).at[at].add(rows)
