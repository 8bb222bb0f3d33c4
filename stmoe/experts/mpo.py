"""A bank of feed-forward experts whose matrices are chains of small tensors; all share the central one."""

import math
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import activations
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
    inward, outward: factors of the width that goes in, and of the one that comes out.
    most: the largest bond, None for any: then every matrix is such a chain.

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
    self.products_per_row = math.prod(inward) * math.prod(outward)
    self.left, self.right = (
        nnx.List([axes.param(init, (num_experts, *shape), 'expert', *names, rngs=rngs) for shape in part])
        for part in (shapes[:middle], shapes[middle + 1:]))

  def __call__(self) -> jax.Array:
    """Returns the matrices [E,D,F]."""
    return matrices([*(w[...] for w in self.left), self.central[...], *(w[...] for w in self.right)])


class Mpo(nnx.Module):
  """E networks act(x Wi) Wo, each matrix a chain of tensors with a shared centre (MPOE, arXiv:2203.01104).

  Most parameters are in the central tensors; experts own the small tensors around them. Rows are multiplied
  by the whole matrix, which is put together at every step. `stmoe upcycle` begins with those of dense layers.

  Args:
    d_model, d_ff: D and F.
    inward, outward: factors of D and of F, equally many; None = `parts` factors as alike as possible.
    parts:      tensors of a chain, an odd number.
    bond:       the largest bond; None = any: every matrix is such a chain.
    activation: name of a function, see `core/units/activations.py`.
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
