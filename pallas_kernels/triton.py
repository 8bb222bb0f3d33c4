"""What the kernels for GPUs by Triton share: products of tiles, their order, sizes that Triton accepts.

JAX 0.11 announces that Pallas will lose Triton. On Hopper only lists of rows into narrow experts, float32,
odd sizes, experts with few rows, `combine` and `route` still need it (see `pallas_kernels.hopper`).
"""

import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import target

SMALLEST = 16                           # of every side of a product in Triton
# KiB of shared memory that a program can have, by names of GPUs: the first that is found counts.
SHARED = ((r'\bG?[HB]\d+', 227), (r'\bA(30|100|800)\b', 163), (r'V100', 96), (r'\bT4\b', 64), ('', 99))
SUMS = 128                              # registers of a thread that may hold sums, of 255


class Tiles(NamedTuple):
  """Sides of a tile (powers of two), and how Triton compiles its program."""
  m: int
  n: int
  k: int
  warps: int
  stages: int
  band: int = 8                         # rows of tiles that share their columns in the L2 cache


def shared():
  """Returns the bytes of shared memory that a program can have on `target.device`."""
  return 1024 * next(size for name, size in SHARED if re.search(name, target.device().device_kind))


def around(guess, step, sums, itemsize):
  """Returns Tiles worth timing: `guess`, then tiles that fit, fewest changes from `guess` first.

  What a product loads in `stages` steps fits shared memory, and its sums leave half of the registers. A guess
  that does not fit has fewer stages, and then fewer columns.

  Args:
    step, sums: functions of Tiles: how many entries a step loads, and how many are added up.
    itemsize: bytes of an entry.
  """
  loaded = lambda t: t.stages * step(t) * itemsize
  while loaded(guess) > shared():
    guess = guess._replace(stages=guess.stages - 1) if guess.stages > 2 else guess._replace(n=guess.n // 2)
  near = lambda side: {side, max(side // 2, SMALLEST), side * 2}
  sides = itertools.product(near(guess.m), near(guess.n), near(guess.k), (4, 8), (2, 3, 4), (guess.band,))
  fits = [t for t in itertools.starmap(Tiles, sides) if sums(t) <= 32 * t.warps * SUMS
          and loaded(t) <= shared()]
  changes = lambda t: sum(a != b for a, b in zip(t, guess))
  return [guess, *sorted((t for t in fits if t != guess), key=lambda t: (changes(t), t))]


def dot(a, b, *, over, interpret):
  """Returns the product of two tiles in float32, summed over axis over[0] of `a` and over[1] of `b`.

  Tensor cores multiply bfloat16 exactly. A float32 would be cut to 11 bits there, so three products of its
  parts are added. CPUs, which run this for tests only, have no such product and need none.
  """
  exact = jax.lax.Precision.HIGHEST if interpret else jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
  return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())),
                             precision=exact if a.dtype == jnp.float32 else None,
                             preferred_element_type=jnp.float32)


def snake(i, rows, columns, group):
  """Returns (row, column) of the i-th tile: bands of `group` rows, column by column, to and fro.

  Tiles that run at the same time then share both of their operands in the L2 cache. A band begins where
  the last band ended.

  >>> [tuple(map(int, snake(i, 3, 2, 2))) for i in range(6)]
  [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (2, 0)]
  """
  band = i // (group * columns)
  high = jnp.minimum(rows - band * group, group)                     # the last band may be lower
  row = band * group + i % (group * columns) % high
  column = i % (group * columns) // high
  return row, jnp.where(band % 2 == 1, columns - 1 - column, column)


def power(size, most=None):
  """Returns the power of two that holds `size`, at least SMALLEST and at most `most`, for a side of a tile.

  >>> [power(size, 128) for size in (1, 100, 128, 1000)]
  [16, 128, 128, 128]
  """
  enough = max(1 << (size - 1).bit_length(), SMALLEST)
  return enough if most is None else min(enough, most)


def mask(tall, wide):
  """Returns bool[m] and bool[n] as bool[m,n], or what broadcasts to it; None stands for all of a side."""
  if tall is None or wide is None:
    return None if tall is wide else wide[None] if tall is None else tall[:, None]
  return tall[:, None] & wide[None]


def load(ref, where=None):
  """Returns the tile that `ref` views, zero where `where` (None, or a mask that broadcasts) is false."""
  if where is None:
    return plgpu.load(ref)
  return plgpu.load(ref, mask=jnp.broadcast_to(where, ref.shape), other=0)


def store(ref, tile, where=None):
  """Writes a tile in the dtype of the `ref` that views its place, where `where` is true."""
  where = None if where is None else jnp.broadcast_to(where, ref.shape)
  plgpu.store(ref, tile.astype(ref.dtype), mask=where)


def params(warps, stages):
  """Returns the compiler's settings: warps of a program, and steps of a loop whose loads are under way."""
  return plgpu.CompilerParams(num_warps=warps, num_stages=stages)
