"""Sorted rows and `jax.lax.ragged_dot`: dropless, short, a reference only.

XLA computes `ragged_dot` on CPU and on CUDA as a dense product over all experts, E times
the work that is needed. On TPUs (libtpu 0.0.42) XLA does so for the gradient to the weights only,
and has a kernel for the rest. `pallas` is the dropless executor. `ragged` stays as the plainest
user of the Ragged layout (tests/core/test_secretly_dense.py).
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
    rows = rows_lib.sort(a)
    sorted_x = rows_lib.take(x, a, rows)                             # [M, D]
  with jax.named_scope('experts'):
    y = experts(layouts.Ragged(sorted_x, rows.sizes), key).x         # [M, D]
  with jax.named_scope('combine'):
    y = rows_lib.give(y, a, rows)                                    # [G, N, D]
    y = y * jnp.where(live, a.weight, 0)[..., None]                  # dead weights may be NaN
    return rows_lib.add_up(y, a).astype(x.dtype)                     # [G, S, D]
