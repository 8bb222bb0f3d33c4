"""EAQuant: experts as codes of 8, 4 or 3 bits, smoothed by one vector for all, with routers aligned.

EAQuant (arXiv:2506.13329, id unverified). Channels of a layer's input with large numbers are divided by s
[D], and the weights that read them have the factor s. Hidden channels with outliers are scaled within each
expert. Then matrices become codes (`experts/wrappers/packed.py`), as do inputs of products, row by row. The
router is rounded to the grid whose choices stay nearest to its own. `smoothing.py` has s and the scales.

Differs: s stays with the bank, which divides its input by it. In the paper the norm before the layer does so,
  for the router and shared experts, too: the products are the same. The limit of balanced calibration is of
  each batch of the pass. Attention and shared experts stay floats, and so do a router's rounded weights.
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import codes
from stmoe.surgery import aside
from stmoe.surgery import packing
from stmoe.surgery import smoothing
from stmoe.surgery import sparse

CANDIDATES = 0.35 + np.arange(101) * 0.65 / 100                      # by which a router's ranges are shrunk
FLOAT = 32                               # bits of a weight that is no code


def _partial_kl(w, near, x, number):
  """sum p (log p - log q) over the `number` largest logits of p, of softmaxes over all experts; f[]."""
  log_p, log_q = (jax.nn.log_softmax(x @ matrix.T) for matrix in (w, near))        # [T, E]
  log_p, first = jax.lax.top_k(log_p, number)
  return (jnp.exp(log_p) * (log_p - jnp.take_along_axis(log_q, first, 1))).sum() / len(x)


# Parts of the loss of a rounded router `near` f[E,D], of w f[E,D] on inputs x f[T,D]: f[E] of rows, or f[].
PARTS = {
    'kl': lambda w, near, x, k: _partial_kl(w, near, x, k),
    'kl_all': lambda w, near, x, k: _partial_kl(w, near, x, len(w)),
    'linear': lambda w, near, x, k: jnp.square(x @ (w - near).T).sum(0),
    'tensor': lambda w, near, x, k: jnp.square(w - near).sum(1),
}
# What the ratio of a router's range makes small: sums of PARTS; without parts the range stays whole.
LOSSES = {
    'kl': ('kl',), 'kl_all': ('kl_all',), 'linear': ('linear',), 'tensor': ('tensor',),
    'linear_kl': ('linear', 'kl'), 'tensor_kl': ('tensor', 'kl'), 'whole': (),
}


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.125, bits: ranges.Whole(2, 8) | None = None,
            activation_bits: ranges.Whole(2, 8) | ranges.Whole(0, 0) | None = None,
            group: ranges.Count | None = None, symmetric: ranges.Flag = False,
            smooth: ranges.Choice(*smoothing.MODES) = 'max', gate: ranges.Flag = False,
            alpha: ranges.Share = 0.6, down: ranges.Flag = True, balanced: ranges.Flag = True,
            quantile: ranges.Between01 = 0.65, fence: ranges.NonNegative = 1.5, rate: ranges.Share = 0.7,
            router: ranges.Choice(*LOSSES) = 'kl',
            router_bits: ranges.Whole(2, 8) | None = 8) -> tuple[dict, dict]:
  """Returns (params, changes) with experts of packed codes; see `sparse`.

  Args:
    keep:      bits of a weight over 32. At 1.0 weights stay floats; only hidden channels are scaled.
    bits:      of a weight, in place of keep.
    activation_bits: of the inputs of products; None = as weights, 0 = not rounded.
    group:     inputs of an output that have a grid in common; None = all.
    symmetric: grids around 0, of weights and of the router.
    smooth:    how the scales of experts become one s: see `smoothing.MODES`. gate: the router's enters, too.
    alpha:     power of the inputs in a scale.
    down:      whether hidden channels with outliers are scaled, where the experts' function allows it: those
      of gated experts, and of others with ReLU. quantile, fence, rate: see `smoothing.of_units`.
    balanced:  look at as many tokens of each expert, not at all. Experts that no token has are looked at on
      the first group of tokens.
    router:    how the router's range is chosen, a key of LOSSES. router_bits: None = the router stays.
      Routers whose logits are no single product stay as well.
  """
  width, layers = _bits(keep, bits), sparse.found(config)
  packs, searches = width < FLOAT, bool(router_bits and LOSSES[router])
  rounded = (width if activation_bits is None else activation_bits) or None
  grid = dict(group=group, kind='symmetric' if symmetric else 'affine')
  fields = grid | dict(bits=width, activation_bits=rounded, smooth=smooth != 'none')
  changes = {f'{layer.where}.experts': packing.fields_of(config, layer, fields) for layer in layers if packs}
  packed_layers = sparse.found(sparse.changed(config, changes))      # raises what cannot be, before the pass
  hidden = ['even_hidden', 'first_hidden'] if balanced else ['largest_hidden']
  names = hidden * down + packs * (smoothing.items(smooth, gate) + ['first_inputs'] * searches)
  seen = calibration(*names) if names else {layer.name: {} for layer in layers}
  outliers = dict(quantile=quantile, fence=fence, rate=rate)
  ends = lambda layer: _ends(*(seen[layer.name][name] for name in hidden))
  scaled = lambda layer: layer.arrays(params, 'experts') | (
      smoothing.down(layer, config, params, ends(layer), **outliers) if down else {})
  if not packs:
    return sparse.replaced(params, {(*layer.path, 'experts', *path): array for layer in layers
                                    for path, array in scaled(layer).items()}), {}
  made = aside.Made()
  for layer, packed in zip(layers, packed_layers):
    bank, scale, matrix = scaled(layer), np.ones(config.model.d_model), _matrix(layer, params)
    if smooth != 'none':
      scale = smoothing.of_inputs(layer, bank, matrix, seen[layer.name], smooth, alpha, gate)
      bank = smoothing.multiplied(layer, config, bank, scale)
      made[(*layer.path, 'experts', 'smooth')] = jnp.asarray(scale, jnp.float32)
    made |= packing.arrays(layer, packed, bank, width, **grid)
    if router_bits and matrix:
      made |= _rounded(layer, matrix, scale, seen[layer.name], router_bits, LOSSES[router], symmetric)
  return packing.replaced(params, layers, made), changes


def _ends(own, first=None):
  """F[2,E,F] of hidden channels, of each expert's `own` tokens; of `first` ones where it has none (-inf)."""
  return own if first is None else np.where(np.isfinite(own), own, first)


def _bits(keep, bits):
  """The bits of a weight, of FLOAT for one that stays a float."""
  width = FLOAT * keep if bits is None else bits
  if width != FLOAT and width not in range(2, 9):
    near = min(range(2, 9), key=lambda n: abs(n - width))
    raise errors.UserError(f'keep={keep}: {width:g} bits of {FLOAT}; codes have 2 to 8; nearest: '
                           f'keep={near / FLOAT:g}')
  return int(width)


def _matrix(layer, params):
  """(path, array [D,n]) of the one product that makes a router's logits, or None."""
  found = [(path, array) for path, array in layer.arrays(params, 'router').items() if array.ndim == 2]
  fits = [(path, array) for path, array in found if array.shape[0] == layer.module.d_model]
  return fits[0] if len(found) == len(fits) == 1 else None


def _rounded(layer, matrix, scale, seen, bits, parts, symmetric):
  """Dict path -> array of the router [D,n] of a layer, on the grid whose choices are nearest to its own."""
  path, array = matrix
  w = jnp.asarray(array.T * scale, jnp.float32)                      # [n, D]
  x = jnp.asarray(seen['first_inputs'] / scale, jnp.float32) if parts else None
  k = contract.offered(layer.module.router, 'k') or 1
  near = searched(w, x, bits, k, parts, symmetric)['values']
  return {(*layer.path, 'router', *path): (near / scale).T.astype(array.dtype)}


def searched(w: jax.Array, x: jax.Array | None, bits: int, k: int, parts: tuple[str, ...],
             symmetric: bool = False) -> dict[str, jax.Array]:
  """Returns dict(ratio, scale, zero: f32[E], values: f32[E,D], scores: f32[101,E]) of the best grids of w.

  The first of CANDIDATES with the least score is taken. A part of the score that is one number for all rows
  counts for each.

  Args:
    w:     f32[E,D], router; x: f32[T,D], inputs, None where there are no parts.
    k:     experts of a token.
    parts: of the score, keys of PARTS; without any the range is not shrunk.
  """
  ratios = jnp.asarray(CANDIDATES if parts else [1.0], jnp.float32)
  scores = _scores(w, x, ratios, bits, k, parts, symmetric)
  ratio = ratios[scores.argmin(0)]
  return _grid(w, ratio, bits, symmetric) | dict(ratio=ratio, scores=scores)


def _grid(w, ratio, bits, symmetric):
  """dict(scale, zero: f32[E], values: f32[E,D]) of w [E,D], whose range is shrunk by `ratio` [] or [E]."""
  low, high = jnp.minimum(w.min(1), 0), jnp.maximum(w.max(1), 0)
  scale, zero = codes.affine(low, high, bits, ratio, symmetric)      # [E]
  q = codes.code(w, scale[:, None], zero[:, None], bits)
  return dict(scale=scale, zero=zero, values=codes.value(q, scale[:, None], zero[:, None], bits))


@functools.partial(jax.jit, static_argnames=('bits', 'k', 'parts', 'symmetric'))
def _scores(w, x, ratios, bits, k, parts, symmetric):
  """f32[N,E] of `ratios` [N]; compiled once for all layers of a shape."""
  def score(ratio):
    near = _grid(w, ratio, bits, symmetric)['values']
    return sum((PARTS[part](w, near, x, k) for part in parts), jnp.zeros(len(w)))
  return jax.lax.map(score, ratios)
