"""Wanda and OWL: in every output of an expert's matrices the inputs that matter least become 0.

Both as STUN uses them (arXiv:2409.06211). In Wanda an entry matters by |W| times the root of its input's
second moment. OWL leaves more entries to layers with more outliers among these scores. The arrays keep their
shapes; zeros are stored, and training moves them.

Differs: the matrices of experts are pruned, and no others.
"""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import sparse

# What enters a matrix, by the logical axis of its inputs -> the sums of squares in the calibration.
SQUARES = {'expert_embed': 'input_squares', 'expert_mlp': 'own_hidden_squares'}


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, block: ranges.Count | None = None,
            allocation: ranges.Choice('layer', 'owl') = 'layer', spread: ranges.NonNegative = 0.08,
            outlier: ranges.Positive = 5.0) -> tuple[dict, dict]:
  """Returns (params, changes) with share `keep` of the entries of every expert's matrices; see `sparse`.

  Args:
    block:      m of an n:m pattern: of each m inputs in a row the share `keep` stays; None = of all inputs.
    allocation: 'layer': the same share in each; 'owl': by the layers' outliers, `keep` on average.
    spread:     lambda of OWL: shares are at most so far from their middle.
    outlier:    M of OWL: a score above M times the mean of its layer is an outlier.
  """
  layers = sparse.found(config)
  if block is not None:
    _check(keep, block, allocation)
  matrices = {layer.name: sparse.matrices(layer, params) for layer in layers}
  for array, _ in [one for own in matrices.values() for one in own.values()] if block else ():
    _check_block(block, array.shape[1])
  statistics = calibration('calls', *SQUARES.values()) if keep < 1 else {}
  shares = dict.fromkeys(matrices, keep)
  if allocation == 'owl' and keep < 1:
    counts = [_outliers(matrices[layer.name], statistics[layer.name], outlier) for layer in layers]
    shares = dict(zip(matrices, densities(np.array(counts), keep, spread).clip(0, 1)))
  replaced = aside.Made()
  for layer in layers:
    for path, (array, inputs) in matrices[layer.name].items() if shares[layer.name] < 1 else ():
      sums = statistics[layer.name]
      gone = pruned(scores(array, sums[SQUARES[inputs]], sums['calls']), 1 - shares[layer.name], block)
      seen = (sums['calls'] > 0)[:, None, None]                      # nothing is known of other experts
      replaced[(*layer.path, 'experts', *path)] = jnp.where(gone & seen, 0, array)
  return sparse.replaced(params, replaced), {}


def _check(keep, block, allocation):
  if allocation == 'owl':
    raise errors.UserError(f'block={block} has one share in all layers, and allocation=owl another in each; '
                           'nearest: allocation=layer')
  whole = round(keep * block)
  if not math.isclose(keep * block, whole, abs_tol=1e-6) or not whole:
    raise errors.UserError(f'keep={keep} of block={block} is no whole number of entries; nearest: '
                           f'keep={max(whole, 1) / block:g}')


def _check_block(block, inputs):
  """Raises UserError for blocks that do not divide the inputs of a matrix."""
  if inputs % block:
    raise errors.UserError(f'block={block} does not divide the {inputs} inputs of a matrix; nearest: '
                           f'block={errors.closest(block, errors.divisors(inputs))}')


def scores(w: jax.Array, squares: np.ndarray, calls: np.ndarray) -> jax.Array:
  """Returns [E,in,out], |W| sqrt(s) of matrices w [E,in,out]: s are `squares` over `calls`.

  Args:
    squares: f[E,in], sums of the squares of inputs; calls: f[E], sequences with a token of the expert. So s
      counts sequences, not tokens, and is not comparable among experts.
  """
  s = squares / np.maximum(calls, 1)[:, None]
  return jnp.abs(w) * jnp.sqrt(jnp.asarray(s, w.dtype))[..., None]


def pruned(score: jax.Array, ratio: float, block: int | None = None) -> jax.Array:
  """Returns bool[...,in,out]: for every output floor(in * ratio) inputs of the smallest `score` [...,in,out].

  Args:
    block: m: round(m * ratio) in each m inputs in a row instead. Of equal scores the first goes.

  >>> pruned(jnp.array([[3.0], [1.0], [2.0], [0.0]]), 0.5).ravel().tolist()
  [False, True, False, True]
  >>> pruned(jnp.array([[3.0], [2.0], [1.0], [0.0]]), 0.5, block=2).ravel().tolist()
  [False, True, False, True]
  """
  *stack, inputs, outputs = score.shape
  size = block or inputs
  number = round(size * ratio) if block else math.floor(inputs * ratio + 1e-9)
  blocks = score.reshape(*stack, inputs // size, size, outputs)
  rank = jnp.argsort(jnp.argsort(blocks, -2, stable=True), -2)
  return (rank < number).reshape(score.shape)


def _outliers(matrices, sums, outlier):
  """The percentage of the scores of a layer above `outlier` times their mean."""
  parts = [scores(array, sums[SQUARES[inputs]], sums['calls']) for array, inputs in matrices.values()]
  return outliers(parts, outlier)


def outliers(parts: list[jax.Array], outlier: float) -> float:
  """Returns the percentage of the scores in arrays [...] above `outlier` times the mean of all.

  >>> outliers([jnp.array([0.0, 0.0, 0.0]), jnp.array([8.0])], 3.0)
  25.0
  """
  number = sum(part.size for part in parts)
  mean = sum(float(part.sum()) for part in parts) / number
  return 100 * sum(int((part > outlier * mean).sum()) for part in parts) / number


def densities(percent: np.ndarray, keep: float, spread: float) -> np.ndarray:
  """Returns f64[L], the share of each layer: outliers f[L] scaled to [0, 2 lambda] and centred, plus `keep`.

  Layers with equally many outliers have equal shares.

  >>> densities(np.array([0.0, 1.0, 2.0]), 0.5, 0.1).round(3).tolist()
  [0.4, 0.5, 0.6]
  """
  width = np.ptp(percent)
  scaled = (percent - percent.min()) / (width if width else 1.0) * 2 * spread
  return scaled - scaled.mean() + keep
