"""Scales that move large numbers from activations into weights and change no function (arXiv:2506.13329).

Of a layer's input there is one scale for all experts, made of the experts' scales. Of hidden channels with
outliers every expert has scales of its own.
"""

from collections.abc import Mapping
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe.core import contract
from stmoe.core.transport import layouts
from stmoe.surgery import sparse

LEAST = 1e-5                             # of what is divided by, and of powers
HIDDEN, INPUT = 'expert_mlp', 'expert_embed'

# How the scales f[E,D] of experts become one f[D]: their maximum, or a mean by shares f[E] of
# sum1: tokens; sum2: the spread z of weights, by softmax(sqrt z), softmax(z), sqrt z and z;
# sum3: probabilities.
# all: the maximum of all of these. none: there is no scale.
MODES = {
    'none': (), 'max': ('max',), 'sum1': ('sum1',), 'sum2_0': ('sum2_0',), 'sum2_1': ('sum2_1',),
    'sum2_2': ('sum2_2',), 'sum2_3': ('sum2_3',), 'sum3': ('sum3',),
    'all': ('max', 'sum1', 'sum2_0', 'sum2_1', 'sum2_2', 'sum2_3', 'sum3'),
}


def items(mode: str, gate: bool) -> list[str]:
  """Returns the names of what calibration must collect for `of_inputs`."""
  found = ['largest_inputs', 'tokens', 'coactivation'] if mode != 'none' else []
  return found + ['largest_input'] * gate + ['probabilities'] * ('sum3' in MODES[mode])


def of_consumer(largest: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
  """Returns f[...,D]: a^alpha / w^(1 - alpha), the scale of the inputs of one consumer, or of several.

  Args:
    largest: f[...,D] a, largest |x| of each channel; weights: f[...,D] w, largest weight that reads it.

  >>> of_consumer(np.array([4.0]), np.array([1.0]), 0.5).tolist()
  [2.0]
  """
  return np.maximum(largest, LEAST) ** alpha / np.maximum(weights, LEAST) ** (1 - alpha)


def spread(weights: np.ndarray) -> np.ndarray:
  """Returns f[...], the largest over channels of max |w| / mean |w| over outputs, of weights [...,D,F]."""
  size = np.abs(np.float64(weights))
  return (size.max(-1) / np.maximum(size.mean(-1), 1e-30)).max(-1)


def merged(scales: np.ndarray, mode: str, shares: dict[str, np.ndarray],
           also: tuple[np.ndarray, ...] = ()) -> np.ndarray:
  """Returns f[D], the one scale of experts with scales f[E,D], by a key of MODES.

  Args:
    shares: dict name -> f[E]; see `shares_of`.
    also:   scales f[D] of other consumers, which enter by the maximum.
  """
  parts = [scales.max(0) if part == 'max' else shares[part] @ scales for part in MODES[mode]]
  return np.max([*parts, *also], axis=0)


def shares_of(tokens: np.ndarray, choices: float, spreads: np.ndarray,
              probabilities: np.ndarray | None) -> dict[str, np.ndarray]:
  """Returns dict part of MODES -> f[E], the shares of experts.

  Args:
    tokens:        f[E] of each expert; choices: f[] tokens times experts of a token.
    spreads:       f[E], see `spread`; probabilities: f[E], means of the router's.
  """
  soft = lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()
  root = np.sqrt(spreads)
  return dict(sum1=tokens / max(choices, 1.0), sum2_0=soft(root), sum2_1=soft(spreads),
              sum2_2=root / root.sum(), sum2_3=spreads / spreads.sum(), sum3=probabilities)


def of_inputs(layer: sparse.Layer, bank: dict, matrix: tuple | None, seen: dict, mode: str, alpha: float,
              gate: bool) -> np.ndarray:
  """Returns f[D], the scale of a layer's inputs.

  Args:
    bank:   dict path -> array of its experts; matrix: (path, [D,n]) of its router, or None.
    seen:   what calibration collected; mode, alpha: see `merged` and `of_consumer`.
    gate:   whether the router's scale enters.
  """
  reads = [np.asarray(bank[path]) for path in _consumers(layer)]
  number = layer.num_experts
  largest = lambda w: np.broadcast_to(np.abs(w).max(-1), (number, w.shape[-2]))    # [E, D]
  spreads = [np.broadcast_to(spread(w), (number,)) for w in reads]
  scales = of_consumer(seen['largest_inputs'], np.max([largest(w) for w in reads], 0), alpha)
  also: tuple[np.ndarray, ...] = ()
  if gate and matrix:
    also = (of_consumer(seen['largest_input'], np.abs(np.asarray(matrix[1])).max(1), alpha),)
  tokens, k = np.diagonal(seen['coactivation']), contract.offered(layer.module.router, 'k') or 1
  means = seen['probabilities'] / max(float(seen['tokens']), 1.0) if 'probabilities' in seen else None
  shares = shares_of(tokens, float(seen['tokens']) * k, np.max(spreads, 0), means)
  return merged(scales, mode, shares, also)


def _consumers(layer):
  """The paths of the matrices of a bank that read its input."""
  found = []
  for path, (names, _) in layer.axes('experts').items():
    own = [name for name in names if name != 'expert']
    if len(own) == 2 and own[0] == INPUT:
      found.append(path)
  return found


def multiplied(layer: sparse.Layer, config: ml_collections.ConfigDict, bank: dict, scale: np.ndarray) -> dict:
  """Returns `bank`, dict path -> array, for inputs that are divided by `scale` f[D].

  Raises UserError for a bank that reads its input by something else than products.
  """
  factor = jnp.asarray(scale, jnp.float32)[:, None]
  made = bank | {path: bank[path] * factor for path in _consumers(layer)}
  if not same(layer, config, bank, made, factor[:, 0]):
    raise errors.UserError(f'{layer.where}.experts: this bank reads its input by more than products, which '
                           'would see its scale; nearest: smooth=none')
  return made


def same(layer: sparse.Layer, config: ml_collections.ConfigDict, one: Mapping, other: Mapping,
         divisor: jax.Array | float = 1.0) -> bool:
  """Returns whether the first experts of two banks compute the same, the second of x / divisor f[D]."""
  section = sparse.section(config, f'{layer.where}.experts').to_dict()
  width, named = layer.module.d_model, layer.axes('experts')
  make = lookup.recipe('experts', section)
  graph, state = nnx.split(axes.abstract(lambda: make(width, num_experts=1, rngs=nnx.Rngs(0))))

  def run(bank, x):
    first = lambda path: bank[path][:1] if 'expert' in named[path][0] else bank[path]
    arrays = [(path, variable.replace(first(path))) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(arrays))(layouts.Buckets(x)).x
  x = 3 * jax.random.normal(jax.random.key(0), (1, 16, width))
  before, after = run(one, x), run(other, x / divisor)
  return bool(jnp.abs(after - before).max() <= 1e-4 * jnp.abs(before).max())


def moved(ends: np.ndarray, fence: float) -> float:
  """Returns the fence of outliers `ends` f[n]: that of the natural cut between them, if there are several.

  Of all cuts of the falling numbers, that with the largest gap less the variance of the inner side.

  >>> moved(np.array([8.0, 5.5, 3.0]), 2.0)
  3.0
  """
  falling = np.sort(ends)[::-1]
  if len(falling) < 2:
    return fence
  variance = lambda inner: inner.var(ddof=1) if len(inner) > 1 else 0.0
  quality = [falling[at - 1] - falling[at] - variance(falling[at:]) for at in range(1, len(falling))]
  return float(falling[1 + int(np.argmax(quality))])


def of_units(high: np.ndarray, low: np.ndarray, *, quantile: float = 0.65, fence: float = 1.5,
             rate: float = 0.7) -> np.ndarray:
  """Returns f[F], by what a hidden channel is to be divided: 1 for all but channels with outliers.

  Beyond `fence` ranges between the quantiles above the upper one is an outlier. A channel with one has
  the largest of (|end| / largest normal end)^rate over both signs.

  Args:
    high, low: f[F], largest and smallest number of every channel.

  >>> of_units(np.array([1.0, 1.0, 1.0, 4.0]), np.zeros(4), rate=0.5).tolist()
  [1.0, 1.0, 1.0, 2.0]
  """
  signs, outlier = [np.asarray(high, np.float64), -np.asarray(low, np.float64)], np.zeros(len(high), bool)
  for ends in signs:
    upper, lower = np.quantile(ends, [quantile, 1 - quantile])
    limit = upper + fence * (upper - lower)
    outlier |= ends > moved(ends[ends > limit], limit)
  if not outlier.any() or outlier.all():
    return np.ones(len(high))
  normal = [ends[~outlier].max() for ends in signs]
  ratios = [np.maximum(ends, 0) / largest for ends, largest in zip(signs, normal) if largest > 0]
  return np.where(outlier, np.max([*ratios, np.zeros(len(high))], 0) ** rate, 1.0)


def down(layer: sparse.Layer, config: ml_collections.ConfigDict, params: dict, ends: np.ndarray,
         **fields) -> dict[tuple, jax.Array]:
  """Returns dict path -> array of what changes in the experts of a layer: hidden channels with outliers.

  What writes a channel is divided, what reads it multiplied. {} where no array that writes it can be: of
  experts without gate whose activation is not linear for all positive factors.

  Args:
    ends:   f[2,E,F], largest h and -h of every channel on the data; -inf = nothing was seen.
    fields: of `of_units`.
  """
  units = {path: names.index(HIDDEN) for path, (names, _) in layer.axes('experts').items() if HIDDEN in names}
  reads = [path for path, axis in units.items() if axis < len(layer.axes('experts')[path][0]) - 1]
  writes, bank = [path for path in units if path not in reads], layer.arrays(params, 'experts')
  if len(reads) != 1 or any('expert' not in layer.axes('experts')[path][0] for path in units):
    return {}
  scale = np.stack([of_units(a, -b, **fields) if np.isfinite(a).all() else np.ones(len(a))
                    for a, b in zip(*ends)])                         # [E, F]
  if (scale == 1).all():
    return {}
  shaped = lambda path, s: jnp.asarray(s, jnp.float32).reshape(
      [n if axis in (0, units[path]) else 1 for axis, n in enumerate(bank[path].shape)])
  probe = 1 + np.arange(scale.shape[1]) % 3 * np.ones_like(scale)    # not 1, so that the test can fail
  for candidate in itertools.chain(([path] for path in writes), [writes]):
    of = lambda s, divided=candidate: {path: bank[path] / shaped(path, s) for path in divided} | {
        reads[0]: bank[reads[0]] * shaped(reads[0], s)}
    if same(layer, config, bank, bank | of(probe)):
      return of(scale)
  return {}
