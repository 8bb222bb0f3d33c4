"""The decomposition of a matrix into a chain of small tensors (a matrix product operator).

Letters: D and F the widths of a matrix, i and j their factors, d the width of a bond. `experts/mpo.py` has
the banks of such chains.
"""

import jax
import jax.numpy as jnp


def split(w: jax.Array, inward: tuple[int, ...], outward: tuple[int, ...],
          most: int | None = None) -> list[jax.Array]:
  """Returns the cores [d,i,j,d'] of a matrix w [D,F], by singular values from left to right.

  A bond is cut to `most` as soon as the chain reaches it. Without cuts the chain is the matrix.

  Args:
    inward, outward: factors of D and of F, equally many.

  >>> first, second = split(jnp.arange(24.0).reshape(4, 6), (2, 2), (2, 3))
  >>> whole = jnp.einsum('zijd,dklz->ikjl', first, second).reshape(4, 6)
  >>> bool(jnp.allclose(whole, jnp.arange(24.0).reshape(4, 6), atol=1e-4))
  True
  """
  parts = len(inward)
  order = [axis for m in range(parts) for axis in (m, parts + m)]    # (i1 j1), (i2 j2), ...
  rest = w.reshape(*inward, *outward).transpose(order).reshape(1, -1)
  cores = []
  for i, j in zip(inward[:-1], outward[:-1]):
    left = len(rest)
    u, s, v = jnp.linalg.svd(rest.reshape(left * i * j, -1), full_matrices=False)
    u, s, v = u[:, :most], s[:most], v[:most]
    cores.append(u.reshape(left, i, j, -1))
    rest = s[:, None] * v
  return [*cores, rest.reshape(len(rest), inward[-1], outward[-1], 1)]


def decompose(w: jax.Array, inward: tuple[int, ...], outward: tuple[int, ...],
              most: int | None = None) -> list[jax.Array]:
  """Returns the cores [d,i,j,d'] of a matrix w [D,F], all bonds cut at once to the `most` largest values.

  Every bond is brought to the gauge in which it carries sqrt(lambda) on both sides: with L R = u lambda v^T
  at a bond, p = R v lambda^-1/2 goes to the left and q = lambda^-1/2 u^T L to the right, p q = 1. Then the
  leading entries of all bonds stay (MPOE, arXiv:2203.01104). Cores are not unique, their product is.
  Differs: `split` with `most`, which cuts one bond after the other, has slightly smaller errors.

  >>> [core.shape for core in decompose(jnp.eye(4), (2, 2), (2, 2), most=3)]
  [(1, 2, 2, 3), (3, 2, 2, 1)]
  """
  cores = split(w, inward, outward)
  if most is None or all(len(core) <= most for core in cores):
    return cores
  flat = lambda core: core.reshape(-1, core.shape[-1])
  end = jnp.ones((1, 1), w.dtype)
  lefts, rights = [end], [end]                                       # what the chain is to either side
  for core in cores[:-1]:
    lefts.append(jnp.linalg.qr(flat(jnp.tensordot(lefts[-1], core, 1)), 'r'))
  for core in reversed(cores[1:]):
    rights.append(jnp.linalg.qr(jnp.tensordot(core, rights[-1], 1).reshape(len(core), -1).T, 'r').T)
  inner = list(map(_gauge, lefts[1:], reversed(rights[1:])))         # of every bond but the ends, which are 1
  to_left, to_right = [p for p, _ in inner] + [end], [end] + [q for _, q in inner]
  return [jnp.tensordot(jnp.tensordot(q[:most], core, 1), p[:, :most], 1)
          for q, core, p in zip(to_right, cores, to_left)]


def _gauge(left, right):
  """(p, q), see `decompose`, of a bond with `left` [n,d] and `right` [d,n]."""
  u, s, v = jnp.linalg.svd(left @ right, full_matrices=False)
  root = jnp.where(s > jnp.finfo(s.dtype).eps * s[0], jnp.where(s > 0, s, 1) ** -0.5, 0)
  return right @ v.T * root, root[:, None] * (u.T @ left)
