"""Every edge fetches its expert's weights: dropless, for very many and very small experts.

Other executors bring rows to weights. Here weights come to rows: an edge reads all arrays of its expert, as
an embedding is looked up. That is right where an expert is hardly larger than a row (PEER: one neuron), or
where there are fewer rows than experts. Memory is that of the fetched arrays, N times an expert.
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
  live = assignment.live(a)                                          # [G, N]
  with jax.named_scope('dispatch'):
    rows = jnp.where(live[..., None], per_edge(x, a), 0)             # [G, N, D]; dead tokens may be NaN
  with jax.named_scope('experts'):
    expert = jnp.where(live, a.expert, 0).reshape(-1)                # [G*N]
    y = experts(layouts.Fetched(rows.reshape(-1, x.shape[-1]), expert), key).x     # [G*N, D']
  with jax.named_scope('combine'):
    weight = jnp.where(live, a.weight, 0)[..., None]                 # dead weights may be NaN
    y = y.reshape(*live.shape, -1) * weight                          # [G, N, D']
    return rows_lib.add_up(y, a).astype(x.dtype)                     # [G, S, D']


def per_edge(x: jax.Array, a: assignment.Assignment) -> jax.Array:
  """Returns [G,N,D], the token of every edge, of tokens x [G,S,D]."""
  if a.choices:                                                      # k copies, whose gradients are k slices
    return jnp.tile(x, (1, a.choices, 1))
  return jnp.take_along_axis(x, a.token[..., None], axis=1)
