"""Numbers as codes of a few bits: grids, codes, their values, and codes packed in planes of bits.

A grid has the values (q - zero) * scale for the codes q = 0 .. 2^bits - 1. The first b bits of a code of B
bits are a code of b bits. So an array that is stored in planes, the most significant plane first, is stored
at every width up to B at once (D2MoE, arXiv:2504.15299).
"""

import jax
import jax.numpy as jnp

from stmoe.errors import UserError

SMALLEST, LARGEST = 1e-5, 1e4            # scales of a grid


def affine(low: jax.Array, high: jax.Array, bits: int, ratio: jax.Array | float = 1.0,
           symmetric: bool = False) -> tuple[jax.Array, jax.Array]:
  """Returns (scale, zero), arrays [...] of grids that reach from `low` to `high`, arrays [...].

  The code `zero` has the value 0.

  Args:
    ratio:     by which the range is shrunk.
    symmetric: the range is from -m to m, where m is the larger of the ends.

  >>> affine(jnp.float32(-1.0), jnp.float32(2.0), 2)
  (Array(1., dtype=float32), Array(1., dtype=float32))
  """
  last = 2 ** bits - 1
  if symmetric:
    half = 2 ** (bits - 1)
    scale = jnp.maximum(jnp.abs(low), jnp.abs(high)) * ratio / max(half - 1, 1)
    return jnp.clip(scale, SMALLEST, LARGEST), jnp.full(scale.shape, half, scale.dtype)
  scale = jnp.clip((high - low) * ratio / last, SMALLEST, LARGEST)
  return scale, jnp.clip(jnp.round(-low * ratio / scale), 0, last)


def nested(most: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
  """Returns (scale, zero), arrays [...] of grids from -most to most [...], for codes that are cut short.

  The values are the centres of 2^bits equal parts of the range. The values of shorter codes then are the
  centres of larger parts.

  >>> scale, zero = nested(jnp.float32(2.0), 2)
  >>> [float(value(jnp.int32(q), scale, zero, 2)) for q in range(4)]
  [-1.5, -0.5, 0.5, 1.5]
  """
  scale = jnp.maximum(most, 2.0 ** (bits - 1) * 1e-30) / 2 ** (bits - 1)
  return scale, jnp.full(scale.shape, (2 ** bits - 1) / 2, scale.dtype)


# How the grid (scale, zero) of an output of `bits` is made of its weights w [...,n,O], for `encode`.
GRIDS = {
    'affine': lambda w, bits: affine(jnp.minimum(w.min(-2), 0), jnp.maximum(w.max(-2), 0), bits),
    'symmetric': lambda w, bits: affine(w.min(-2), w.max(-2), bits, symmetric=True),
    'nested': lambda w, bits: nested(jnp.abs(w).max(-2), bits),
}


def encode(w: jax.Array, bits: int, group: int | None = None, kind: str = 'affine') -> dict[str, jax.Array]:
  """Returns the dict of planes u8[...,bits,ceil(I O / 8)], scale and zero f32[...,I/group,O] of w [...,I,O].

  Args:
    group: inputs of an output that have a grid in common; None = I.
    kind:  a key of GRIDS. 'affine' grids reach from the least to the largest weight, and 0 has a code.

  >>> [name for name in encode(jnp.eye(4), 2)], encode(jnp.eye(4), 2)['planes'].shape
  (['planes', 'scale', 'zero'], (2, 2))
  """
  rows, columns = w.shape[-2:]
  size = group or rows
  if rows % size:
    near = max(n for n in range(1, size + 1) if rows % n == 0)
    raise UserError(f'group={group} does not divide {rows} inputs; nearest: {near}')
  w = w.reshape(*w.shape[:-2], rows // size, size, columns)
  scale, zero = GRIDS[kind](w, bits)
  q = code(w, scale[..., None, :], zero[..., None, :], bits)
  return dict(planes=pack(q.reshape(*q.shape[:-3], -1), bits), scale=scale, zero=zero)


def code(x: jax.Array, scale: jax.Array, zero: jax.Array, bits: int) -> jax.Array:
  """Returns the codes i32[...] of the values of a grid that are nearest to x [...].

  >>> code(jnp.array([-1.0, 0.4, 9.0]), jnp.float32(0.5), jnp.float32(2.0), 3).tolist()
  [0, 3, 7]
  """
  whole = jnp.floor(zero)
  nearest = jnp.round(x / scale + (zero - whole)) + whole
  return jnp.clip(nearest, 0, 2 ** bits - 1).astype(jnp.int32)


def value(q: jax.Array, scale: jax.Array, zero: jax.Array, bits: int, most: int | None = None) -> jax.Array:
  """Returns the values f32[...] of codes q i32[...] of `bits` bits.

  Args:
    most: B of the grid, None = bits. Fewer bits stand for the middle of all codes that begin with them:
      (q 2^(B-b) + (2^(B-b) - 1) / 2 - zero) scale.

  >>> value(jnp.int32([0, 1]), jnp.float32(1.0), jnp.float32(3.5), 1, 3).tolist()
  [-2.0, 2.0]
  """
  left = 2 ** ((bits if most is None else most) - bits)
  return (q * left + (left - 1) / 2 - zero) * scale


def rounded(x: jax.Array, bits: int) -> jax.Array:
  """Returns x [...,D] with every row on a grid of its own, from its least to its largest number and 0.

  The gradient is that of x.
  """
  x32 = x.astype(jnp.float32)
  low, high = (jnp.minimum(x32.min(-1, keepdims=True), 0), jnp.maximum(x32.max(-1, keepdims=True), 0))
  scale, zero = affine(low, high, bits)
  near = value(code(x32, scale, zero, bits), scale, zero, bits).astype(x.dtype)
  return x + jax.lax.stop_gradient(near - x)


def pack(q: jax.Array, bits: int) -> jax.Array:
  """Returns u8[...,bits,ceil(N/8)]: the planes of codes q i32[...,N], the most significant first.

  Bytes begin with their lowest bit.

  >>> pack(jnp.array([3, 0, 1]), 2).tolist()
  [[1], [5]]
  """
  shifts = jnp.arange(bits - 1, -1, -1)[:, None]                     # [B, 1]
  return jnp.packbits(((q[..., None, :] >> shifts) & 1).astype(jnp.uint8), axis=-1, bitorder='little')


def unpack(packed: jax.Array, count: int, bits: int | None = None) -> jax.Array:
  """Returns the codes i32[...,N] of N = `count` from what `pack` returns, u8[...,B,ceil(N/8)].

  Args:
    bits: how many of the B planes are read, the first; None = all.

  >>> packed = pack(jnp.array([5, 2, 7]), 3)
  >>> unpack(packed, 3).tolist(), unpack(packed, 3, 2).tolist()
  ([5, 2, 7], [2, 1, 3])
  """
  planes = packed[..., :bits, :]
  each = jnp.unpackbits(planes, axis=-1, count=count, bitorder='little').astype(jnp.int32)       # [..., b, N]
  shifts = jnp.arange(each.shape[-2] - 1, -1, -1)[:, None]
  return (each << shifts).sum(-2)
