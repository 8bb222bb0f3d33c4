"""A bank of feed-forward experts whose matrices are chains of small tensors; all share the central one."""

import math
import typing

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import ranges
from stmoe.core import activations
from stmoe.core import contract
from stmoe.errors import UserError


def factors(number: int, parts: int) -> tuple[int, ...]:
  """Returns `parts` factors of `number`, as alike as its primes allow, the largest in the middle.

  >>> factors(768, 5), factors(12, 3)
  ((3, 4, 4, 4, 4), (2, 3, 2))
  """
  parts_found, remaining, prime = [1] * parts, number, 2
  primes = []
  while remaining > 1:
    while remaining % prime == 0:
      primes.append(prime)
      remaining //= prime
    prime += 1
  for prime in reversed(primes):                                     # the largest first, to the smallest part
    smallest = parts_found.index(min(parts_found))
    parts_found[smallest] *= prime
  parts_found.sort()
  return (*parts_found[0::2], *reversed(parts_found[1::2]))


def bonds(inward: tuple[int, ...], outward: tuple[int, ...], most: int | None = None) -> tuple[int, ...]:
  """Returns the widths d_0 ... d_n of the bonds of a chain: d_m = min of the sizes left and right of it.

  Args:
    inward, outward: factors of the width that goes in, and of the width that comes out.
    most: the largest bond; None = any, and then every matrix is such a chain.

  >>> bonds((3, 4, 4, 4, 4), (4, 4, 8, 6, 4))
  (1, 12, 192, 384, 16, 1)
  """
  sizes = [i * o for i, o in zip(inward, outward)]
  full = [min(math.prod(sizes[:m]), math.prod(sizes[m:])) for m in range(len(sizes) + 1)]
  return tuple(d if most is None else min(d, most) for d in full)


def matrices(cores: typing.Sequence[jax.Array]) -> jax.Array:
  """Returns the matrices [E,D,F] of chains of `cores`, [E,d,i,j,d'] of experts or [d,i,j,d'] of all.

  >>> matrices([jnp.ones((1, 1, 2, 1, 3)), jnp.ones((3, 1, 2, 1))]).tolist()
  [[[3.0, 3.0], [3.0, 3.0]]]
  """
  chain = jnp.ones((1, 1, 1, 1), cores[0].dtype)                     # [E, I, J, d], E = 1 so far
  for core in cores:
    core = core if core.ndim == 5 else core[None]
    experts = max(len(chain), len(core))
    chain = jnp.einsum('eIJd,edijf->eIiJjf' if len(chain) == len(core) else
                       'zIJd,edijf->eIiJjf' if len(chain) == 1 else 'eIJd,zdijf->eIiJjf', chain, core)
    _, left, i, right, j, bond = chain.shape
    chain = chain.reshape(experts, left * i, right * j, bond)
  return chain[..., 0]


def split(w: np.ndarray, inward: tuple[int, ...], outward: tuple[int, ...],
          most: int | None = None) -> list[np.ndarray]:
  """Returns the cores [d,i,j,d'] of a matrix w [D,F], by singular values from left to right.

  A bond is cut to `most` as soon as the chain reaches it. Without cuts the chain is the matrix.

  Args:
    inward, outward: factors of D and of F, equally many.

  >>> w = np.arange(24.0).reshape(4, 6)
  >>> cores = [jnp.asarray(core) for core in split(w, (2, 2), (2, 3))]
  >>> np.allclose(matrices(cores)[0], w, atol=1e-4)
  True
  """
  parts = len(inward)
  order = [axis for m in range(parts) for axis in (m, parts + m)]    # (i1 j1), (i2 j2), ...
  rest = np.asarray(w, np.float64).reshape(*inward, *outward).transpose(order).reshape(1, -1)
  cores = []
  for i, j in zip(inward[:-1], outward[:-1]):
    left = len(rest)
    u, s, v = np.linalg.svd(rest.reshape(left * i * j, -1), full_matrices=False)
    u, s, v = u[:, :most], s[:most], v[:most]
    cores.append(u.reshape(left, i, j, -1))
    rest = s[:, None] * v
  return [*cores, rest.reshape(len(rest), inward[-1], outward[-1], 1)]


def decompose(w: np.ndarray, inward: tuple[int, ...], outward: tuple[int, ...],
              most: int | None = None) -> list[np.ndarray]:
  """Returns the cores [d,i,j,d'] of a matrix w [D,F], all bonds cut at once to the `most` largest values.

  Every bond is brought to the gauge in which it carries sqrt(lambda) on both sides: with L R = u lambda v^T
  at a bond, p = R v lambda^-1/2 goes to the left and q = lambda^-1/2 u^T L to the right, p q = 1. Then the
  leading entries of all bonds stay (MPOE, arXiv:2203.01104). Cores are not unique, their product is.
  Differs: `split` with `most`, which cuts one bond after the other, has slightly smaller errors.

  >>> [core.shape for core in decompose(np.eye(4), (2, 2), (2, 2), most=3)]
  [(1, 2, 2, 3), (3, 2, 2, 1)]
  """
  cores = split(w, inward, outward)
  if most is None:
    return cores
  flat = lambda core: core.reshape(-1, core.shape[-1])
  lefts, rights = [np.ones((1, 1))], [np.ones((1, 1))]               # d x d: what the chain is to either side
  for core in cores[:-1]:
    lefts.append(np.linalg.qr(flat(np.tensordot(lefts[-1], core, 1)), 'r'))
  for core in reversed(cores[1:]):
    rights.append(np.linalg.qr(np.tensordot(core, rights[-1], 1).reshape(len(core), -1).T, 'r').T)
  end = np.ones((1, 1))
  inner = list(map(_gauge, lefts[1:], reversed(rights[1:])))         # of every bond but the ends, which are 1
  to_left, to_right = [p for p, _ in inner] + [end], [end] + [q for _, q in inner]
  return [np.tensordot(np.tensordot(q[:most], core, 1), p[:, :most], 1)
          for q, core, p in zip(to_right, cores, to_left)]


def _gauge(left, right):
  """(p, q), see `decompose`, of a bond with `left` [n,d] and `right` [d,n]."""
  u, s, v = np.linalg.svd(left @ right, full_matrices=False)
  root = np.where(s > 1e-14 * s[0], np.where(s > 0, s, 1) ** -0.5, 0)
  return right @ v.T * root, root[:, None] * (u.T @ left)


class Chain(nnx.Module):
  """E matrices [D,F] as matrix product operators; the central tensor has no axis `expert`.

  The central tensor has the label `central`: `groups.central.masked=0.5` of a configuration is the gradient
  mask of MPOE, `groups.central.train=False` freezes it, as the released code may.
  """

  def __init__(self, num_experts: int, inward: tuple[int, ...], outward: tuple[int, ...], bond: int | None,
               init_scale: float, *, rngs):
    widths, middle = bonds(inward, outward, bond), len(inward) // 2
    # The variance of an entry is the product of all variances, times the terms of its sum.
    variance = init_scale / (math.prod(inward) * math.prod(widths))
    init = nnx.initializers.normal(variance ** (0.5 / len(inward)))
    shapes = list(zip(widths, inward, outward, widths[1:]))
    names = ('unmodeled',) * 4
    self.central = axes.param(init, shapes[middle], *names, label='central', rngs=rngs)
    self.bond = bond
    self.products_per_row = math.prod(inward) * math.prod(outward)
    self.left, self.right = (
        nnx.List([axes.param(init, (num_experts, *shape), 'expert', *names, rngs=rngs) for shape in part])
        for part in (shapes[:middle], shapes[middle + 1:]))

  def take(self, w: np.ndarray) -> None:
    """Makes all E matrices w [D,F], as near as the bonds allow: copies of one chain (MPOE's start)."""
    middle = len(self.left)
    inward, outward = zip(*(core.shape[-3:-1] for core in (*self.left, self.central, *self.right)))
    cores = [jnp.asarray(core, jnp.float32) for core in decompose(w, inward, outward, self.bond)]
    for own, core in zip((*self.left, *self.right), cores[:middle] + cores[middle + 1:], strict=True):
      own[...] = jnp.broadcast_to(core, own.shape)
    self.central[...] = cores[middle]

  def __call__(self) -> jax.Array:
    """Returns the matrices [E,D,F]."""
    return matrices([*(w[...] for w in self.left), self.central[...], *(w[...] for w in self.right)])


class Mpo(nnx.Module):
  """E networks act(x Wi) Wo, each matrix a chain of tensors with a shared centre (MPOE, arXiv:2203.01104).

  Most parameters are in the central tensors; experts own the small tensors around them. Rows are multiplied
  by the whole matrix, which is put together at every step.

  Args:
    d_model, d_ff: D and F.
    inward, outward: factors of D and of F, equally many; None = `parts` factors as alike as possible.
    parts:      tensors of a chain, an odd number.
    bond:       the largest bond; None = any: every matrix is such a chain.
    activation: name of a function, see `core/activations.py`.
    init_scale: variance scale s of sqrt(s / fan_in) of the matrices.
    use_bias:   with bi [F] and bo [D] that all experts share, initially 0.
  """

  def __init__(self, d_model: int, *, num_experts, d_ff: ranges.Count,
               inward: ranges.Many(ranges.Count, 1) | None = None,
               outward: ranges.Many(ranges.Count, 1) | None = None, parts: ranges.Count = 5,
               bond: ranges.Count | None = None, activation: ranges.Activation = 'relu',
               init_scale: ranges.NonNegative = 1.0, use_bias: ranges.Flag = False, rngs):
    inward, outward = (tuple(widths or factors(width, parts))
                       for widths, width in ((inward, d_model), (outward, d_ff)))
    for field, widths, width in (('inward', inward, d_model), ('outward', outward, d_ff)):
      if math.prod(widths) != width or len(widths) != len(inward) or len(widths) % 2 == 0:
        raise UserError(f'experts mpo: {field}={widths} are no factors of {width}, as many as the other '
                        f'side has, an odd number; nearest: {factors(width, len(inward) // 2 * 2 + 1)}')
    self.wi = Chain(num_experts, inward, outward, bond, init_scale, rngs=rngs)
    self.wo = Chain(num_experts, outward, inward, bond, init_scale, rngs=rngs)
    zeros = nnx.initializers.zeros
    self.bi = axes.param(zeros, (d_ff,), 'expert_mlp', rngs=rngs) if use_bias else None
    self.bo = axes.param(zeros, (d_model,), 'expert_embed', rngs=rngs) if use_bias else None
    self.activation = activation

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,D] -> [.,D] in the same layout."""
    bi, bo = (b if b is None else b[...] for b in (self.bi, self.bo))
    return rows.linear(self.wi(), bi).map(activations.named(self.activation)).linear(self.wo(), bo)
