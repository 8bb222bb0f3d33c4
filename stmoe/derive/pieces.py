"""Pieces of arrays and of the tensors that they are, several read or written at a time; see `interop/rules`.

A piece is a block of a tensor's rows and the slice of our array that it is, in the dtype of either.
"""

from collections.abc import Callable
from collections.abc import Iterable
import concurrent.futures
import math

import numpy as np

from stmoe.interop import rules

UNIT = 32                                # rows of which a piece has a multiple: packings divide no block
BLOCK = 1 << 25                          # bytes of an array that are in memory at once, in each thread
THREADS = 4                              # half of them wait for the disk, as two processors do not
STRIP = 16                               # rows that are transposed at once: their numbers share cache lines


def at_once(works: Iterable[Callable]) -> Iterable:
  """Yields what functions without arguments return, in their order, THREADS of them running at a time."""
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    running: list[concurrent.futures.Future] = []
    try:
      for work in works:
        running.append(pool.submit(work))
        if len(running) > THREADS:
          yield running.pop(0).result()
      while running:
        yield running.pop(0).result()
    finally:
      for future in running:
        future.cancel()


def of(named, place):
  """Returns the tensor, or the part of a tensor, that a Place is in a dict name -> tensor."""
  tensor = named[place.tensor]
  return tensor.part(place.cut) if place.cut else tensor


def small(shape, dtype):
  """Returns whether an array is a single piece."""
  return dtype.itemsize * math.prod(shape) <= 2 * BLOCK


def spans(place, dtype):
  """Yields (first, last) rows of the pieces of a Place in an array of `dtype`, and so `height` rows each."""
  step = height(place, dtype)
  for first in range(0, place.there[0], step):
    yield first, min(first + step, place.there[0])


def height(place, dtype):
  """Returns how many rows of a tensor make a piece."""
  rows = max(1, BLOCK // (dtype.itemsize * math.prod(place.there[1:])))
  return min(place.there[0], rows // UNIT * UNIT or rows)


def shape(place, dtype):
  """Returns the shape of a piece of `height` rows in our array, without the axes of `place.index`."""
  rows = height(place, dtype)
  return (place.shape[0], rows) if place.op == rules.LINEAR else (rows, *place.shape[1:])


def where(place, first, last):
  """Returns the slices of our array that hold rows `first` to `last` of the tensor."""
  rows = slice(first, last)
  return (*place.index, slice(None), rows) if place.op == rules.LINEAR else (*place.index, rows)


def turned(x, place, dtype):
  """Returns `x` in `dtype`, between the form of the tensor and ours; either way."""
  if place.op != rules.LINEAR:
    return x.astype(dtype, copy=False)
  if x.dtype == dtype:                                               # numpy moves whole words the fastest
    x = x.view(f'u{x.dtype.itemsize}')
  columns = np.empty(x.shape[::-1], x.dtype if x.dtype.kind == 'u' else dtype)
  for at in range(0, len(x), STRIP):
    columns[:, at:at + STRIP] = x[at:at + STRIP].T
  return columns.view(dtype)
