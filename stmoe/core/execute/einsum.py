"""The meaning of an Assignment: dense dispatch and combine masks. Slow, obviously right."""

import jax
import jax.numpy as jnp

from stmoe.core import contract
from stmoe.core.transport import layouts


def execute(x: jax.Array, a: contract.Assigned, experts: contract.Bank,
            key: jax.Array | None = None) -> jax.Array:
  """Returns y[g,s] = sum over edges (s -> e) of weight * expert_e(x[g,s]).

  Args:
    x:       [G,S,D] activations.
    a:       Assignment, or SoftAssignment.
    experts: a bank, `experts(rows, key) -> rows`.
    key:     PRNG key for dropout inside experts, or None.
  Returns:
    [G,S,D'] in the dtype of x, D' the width of the bank's rows; tokens without a live edge get zeros.
  """
  groups, _, width = x.shape
  dispatch, combine = a.masks()                                      # [G, S, E, C] twice
  with jax.named_scope('dispatch'):
    rows = jnp.einsum('gsd,gsec->egcd', x, dispatch.astype(x.dtype)) # [E, G, C, D]
  with jax.named_scope('experts'):
    buckets = layouts.Buckets(rows.reshape(a.num_experts, groups * a.capacity, width))
    y = experts(buckets, key).x.reshape(a.num_experts, groups, a.capacity, -1)
  with jax.named_scope('combine'):
    return jnp.einsum('egcd,gsec->gsd', y, combine.astype(x.dtype))  # [G, S, D]
