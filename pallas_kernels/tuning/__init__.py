"""Tiles that were measured to be fastest, by kind of device: tables that `bench.py` of an operation writes.

A table is `<kind of device>.json` in this folder. `python -m pallas_kernels.gmm.bench --tune --json` on
that device writes it, with the commands and the version of JAX that made it. Without a table, kernels
choose tiles from sizes alone.
"""

import functools
import json
import pathlib
import re

import jax

from pallas_kernels import target

FOLDER = pathlib.Path(__file__).parent
FARTHEST = 2                            # a row serves shapes with up to so many times its M, or a part


def tiles(op, kind, shape, dtype):
  """Returns the dict of the fastest tiles for an operation, or None where nothing near was measured.

  Args:
    op: name of the operation, as tables have it.
    kind: of the devices, 'TPU v5 lite'.
    shape: (M, K, N, E); all but M must be as in the table, M may be up to FARTHEST times as many.
    dtype: of its arrays.
  """
  rows = table(kind).get('rows', [])
  far = lambda row: max(row['shape'][0] / shape[0], shape[0] / row['shape'][0])
  near = [row for row in rows if row['op'] == op and row['dtype'] == str(jax.numpy.dtype(dtype))
          and row['tiles'] and row['shape'][1:] == list(shape[1:]) and far(row) <= FARTHEST]
  return min(near, key=lambda row: (far(row), row['seconds']))['tiles'] if near else None


def choose(op, shape, dtype, candidates):
  """Returns the tiles measured fastest on the kind of `target.device`, else the first candidate.

  Args:
    op, shape, dtype: see `tiles`.
    candidates: function of (M, K, N, E, bytes of an element): named tuples of one type, the best guess first.
  """
  guess = candidates(*shape, jax.numpy.dtype(dtype).itemsize)[0]
  return type(guess)(**(tiles(op, target.device().device_kind, shape, dtype) or guess._asdict()))


@functools.cache
def table(kind):
  """Returns the table of a kind of device as a dict, {} without a table."""
  path = FOLDER / f'{file(kind)}.json'
  return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}


def file(kind):
  """Returns the name of a table.

  >>> file('TPU v5 lite')
  'tpu_v5_lite'
  """
  return re.sub(r'[^a-z0-9]+', '_', kind.lower()).strip('_')
