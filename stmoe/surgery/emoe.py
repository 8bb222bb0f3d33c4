"""EMoE: hidden units of dense layers in equal blocks of like keys, chosen by mean keys (arXiv:2310.10908).

A unit's key is its column of the matrix before the activation. Balanced K-means of the keys, each over its
length, makes the blocks. The layer becomes an `avg_k`: a token has the blocks of largest mean key, weight 1.
"""

import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.core import matching
from stmoe.surgery import aside
from stmoe.surgery import dense
from stmoe.surgery import sparse

SAME = 'activation', 'use_bias', 'limit', 'dropout_rate', 'init_scale'     # fields of both layers
ROUNDS, GAIN = 100, 1e-4                 # of assignments and means; the least gain of a round, as a share


def factorise(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
              num_blocks: ranges.Count = 8, k: ranges.Count | None = None, letters: ranges.Text = '',
              seed: ranges.Seed = 0) -> tuple[dict, dict]:
  """Returns (params, changes) with `num_blocks` blocks of units for each dense layer; see `dense`.

  With k = num_blocks the model computes what it did before.

  Args:
    k:       blocks of a token; None = half of them, a choice of this project.
    letters: of the blocks; '' = all with dense layers.
    seed:    of the first centres.
  """
  k = (num_blocks + 1) // 2 if k is None else k
  if k > num_blocks:
    raise errors.UserError(f'k={k} of num_blocks={num_blocks} blocks; nearest: k={num_blocks}')
  made = aside.Made()
  changes: dict[str, object] = {}
  for number, layer in enumerate(dense.found(config, letters)):
    section = sparse.section(config, layer.where)
    dense.check_parts(section, 'num_blocks', num_blocks)
    arrays = layer.arrays(params)
    keys = np.asarray(arrays['wi'], np.float32).T
    units = clusters(keys, num_blocks, np.random.default_rng([seed, number]))
    made[layer.path] = dict(experts=blocks(arrays, units, k))
    same = {field: section[field] for field in SAME}
    changes[layer.where] = dense.block(section, **same, layer='avg_k', d_ff=section.d_ff // num_blocks,
                                       num_blocks=num_blocks, k=k, gated_cells=section.gated)
  return sparse.replaced(params, made), changes


def blocks(arrays: dict, units: np.ndarray, k: int) -> dict:
  """Returns dict name -> [B,...]: blocks of a dense layer's units; each has 1 / k of the output bias.

  Args:
    arrays: of `dense.Layer.arrays`.
    units:  i[B,g] of each block.
  """
  axis_of = {name: dense.HIDDEN[name] for name in arrays}
  moved = {name: array if axis_of[name] is None else jnp.take(array, units.ravel(), axis_of[name])
           for name, array in arrays.items()}
  pieces = dense.cut(moved, len(units))
  return {name: array if axis_of[name] is not None else array * (len(units) / k)
          for name, array in pieces.items()}


def clusters(keys: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
  """Returns i[B,g], the units of B = `number` equal blocks by K-means; the order of units in a block stays.

  Blocks are as many units each, of the least sum of squared distances of unit keys to their block's mean.

  Args:
    keys: f32[F,D].
  Differs: EMoE assigns exactly and takes the best of several starts (k-means-constrained). Here one start, by
    draws in proportion to squared distances, and an assignment by `matching.auction`, which is nearly exact.

  >>> clusters(np.float32([[1, 0], [0, 2], [3, 0], [0, 1]]), 2, np.random.default_rng(0)).tolist()
  [[0, 2], [1, 3]]
  """
  rows = keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)     # [F, D]
  centres, best = rows[_spread(rows, number, rng)], -1.0
  found = np.arange(len(rows)).reshape(number, -1)
  for _ in range(ROUNDS):
    # Of equal blocks, distances to centres are least where the inner products with them are largest.
    label = np.asarray(matching.auction((rows @ centres.T)[None])[0])
    units = np.argsort(label, kind='stable').reshape(number, -1)     # [B, g]
    centres = rows[units].mean(1)                                    # [B, D]
    closeness = float(np.square(centres, dtype=np.float64).sum())    # F - g times it is the sum of distances
    if closeness <= best * (1 + GAIN):
      break
    best, found = closeness, units
  return found[np.argsort(found[:, 0])]


def _spread(rows, number, rng):
  """Places of `number` rows [F,D]: each is drawn by its squared distance to the nearest one before it."""
  places, apart = [int(rng.integers(len(rows)))], np.full(len(rows), np.inf)
  while len(places) < number:
    apart = np.minimum(apart, np.square(rows - rows[places[-1]], dtype=np.float64).sum(1))     # [F]
    apart[places] = 0
    left = apart if apart.any() else np.isin(np.arange(len(rows)), places, invert=True) * 1.0
    places.append(int(rng.choice(len(rows), p=left / left.sum())))
  return places
