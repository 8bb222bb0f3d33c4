"""Sparse upcycling: the first parameters of a sparse model from a trained dense model.

Every expert starts as a copy of the dense feed-forward layer that its layer replaces. Routers start
fresh, all else is kept (Komatsuzaki et al., 2022, arXiv:2212.05055). Several dense models make a
Branch-Train-Mix model: their feed-forward layers become different experts, all else is averaged
(BTX). Where the new attention has experts, dense attention becomes these (BAM, arXiv:2408.08274). With
granularity G every copy is cut into G narrow experts (virtual groups, arXiv:2410.07524). Experts that are
chains of tensors with a shared centre get the chains of the dense layer's matrices (MPOE, arXiv:2203.01104).

Pure dicts go in and come out. The rules are about names. What is below `router` or `tied` is fresh. What is
below `experts` is tiled, or decomposed into `left`, `central` and `right`. Everything else is copied from the
same place.
"""

import dataclasses
import zlib

import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe.surgery import chains
from stmoe.surgery import layout

# What to look at first when a leaf of a feed-forward layer has no counterpart.
HINTS = {
    'wg': "nearest: experts name='glu' for gated dense layers, name='mlp' for the others",
    'b': 'nearest: multiplicative_bias=False',
    'bi': 'nearest: the same use_bias in dense layers and experts',
    'bo': 'nearest: the same use_bias in dense layers and experts',
}
# The last matrix, and the bias that is not cut: each of G shards has a G-th of it.
OUTPUT, OUTPUT_BIAS = 'wo', 'bo'
# What the arrays of routers are below: of one layer, and of several layers together.
ROUTING = {'router', 'tied'}
# The tensors of a chain, in this order; those of `left` and `right` are numbered.
CHAIN = ('left', 'central', 'right')


def kind(path):
  """Returns what becomes of the leaf at `path`, a tuple of keys: 'fresh', 'tiled', 'decomposed' or 'copied'.

  >>> kind(('decoder', 'segments', 0, 'blocks', 1, 'layer', 'experts', 'wi'))
  'tiled'
  """
  if ROUTING & {*path}:
    return 'fresh'
  if 'experts' not in path:
    return 'copied'
  return 'decomposed' if set(path[path.index('experts'):]) & set(CHAIN) else 'tiled'


def report(params):
  """Returns dict 'a/b/c' -> `kind` of every leaf of the sparse model's `params`, in their order."""
  keys = lambda path: tuple(entry.key for entry in path)
  return {text(keys(path)): kind(keys(path)) for path, _ in jax.tree.leaves_with_path(params)}


def activation_scale(num_experts, granularity, k, normalized):
  """Returns A, by which experts' outputs must grow for the first output to be the dense one (2410.07524).

  With granularity 1 and gates that sum to 1 there is nothing to make up for:

  >>> activation_scale(8, 1, 2, True), activation_scale(8, 4, 4, True), activation_scale(8, 2, 2, False)
  (1.0, 4.0, 8.0)

  Args:
    num_experts: N = G * R; granularity: G; k: experts of a token.
    normalized:  gates of a token sum to 1 (A = G), or are a softmax over all N experts (A = R G^2 / k,
      each near 1 / N at first).
  """
  return float(granularity if normalized else num_experts * granularity / k)


def upcycle(dense, sparse, *, noise=0.0, key=None, granularity=1, scale=1.0, gates=1.0, base='average'):
  """Returns the parameters of the sparse model, shaped like `sparse` (see `kind` for the rules).

  Expert i is shard i mod G of the feed-forward layer of dense model (i div G) mod M. M is the
  number of dense models. G > 1 also makes the router's columns rG .. rG+G-1 equal, so that the experts of
  one copy are chosen together when k is a multiple of G. Blocks correspond by their number in their
  stack: the patterns of the two models may differ, and either may be scanned or not.
  Optimizer slots, which are shaped like parameters, may be given instead: they are broadcast to the experts.

  Differs: arXiv:2410.07524 says nothing of the first bias, which is scaled here like its matrix;
    homogeneity needs it.

  Args:
    dense:  list of M pure dicts of trained dense models.
    sparse: pure dict of the new model's initial parameters; only parameters of routers are used.
    noise:  standard deviation of Gaussian noise on the copies, in units of each array's own; key: PRNG key.
    granularity: G: experts are G times narrower than the dense layer.
    scale:  A, see `activation_scale`: every matrix of an expert is multiplied by A^(1/3) if gated,
      else A^(1/2); the last bias by A / G. The function is preserved exactly for ReLU, gated or not;
      nearly for other activations.
    gates:  what the gates of a token add up to, by which the last matrix and bias of an expert are divided.
    base:   a key of BASES: what becomes of arrays that the models have once.
  Raises:
    UserError: a leaf without counterpart or of another shape, dense leaves that nothing takes,
      stacks of other depths, or a dense model that has experts.
  """
  scanned = layout.is_scanned(sparse)
  target = layout.unroll(sparse) if scanned else sparse
  sources, shapes = [layout.flat(d) for d in dense], _shapes(target)
  for source in sources:
    _check(source, shapes)
  model = layout.visit(target, _Copies(sources, shapes, granularity, scale, gates, noise, key, base).made)
  return layout.roll(model) if scanned else model


# Of several models' arrays, the array of the one model that they become.
BASES = {
    'average': lambda leaves: sum(leaves) / len(leaves),
    'first': lambda leaves: leaves[0],
}


def based(leaves, base, dtype):
  """Returns the array [...] of one model from M models' `leaves`; a single one stays as it is."""
  return leaves[0] if len(leaves) == 1 else BASES[base](leaves).astype(dtype)


@dataclasses.dataclass(frozen=True)
class _Copies:
  """What makes a leaf of the new model from the dense models' leaves; the fields are those of `upcycle`.

  sources: list of dict path -> leaf; shapes: dict path -> shape of the new model.
  """
  sources: list
  shapes: dict
  granularity: int
  scale: float
  gates: float
  noise: float
  key: jax.Array | None
  base: str

  def made(self, path, leaf):
    """Returns the leaf at `path`, shaped like `leaf`."""
    if kind(path) == 'fresh':
      return leaf if self.granularity == 1 else _group(leaf, path, self.shapes, self.granularity)
    leaves = [source[_counterpart(path, source)] for source in self.sources]
    if kind(path) == 'decomposed':
      matrix = path[:path.index('experts') + 2]
      return _core(path, [leaf * self._factor(matrix) for leaf in leaves], self.shapes, self.granularity,
                   self.noise)
    if kind(path) == 'copied' or leaf.ndim == leaves[0].ndim:          # or what all experts share
      _same_shape(path, leaves[0].shape, leaf.shape)
      whole = based(leaves, self.base, leaf.dtype)
      return whole if kind(path) == 'copied' else whole * self._factor(path)
    return self._noisy(path, _bank(path, leaves, leaf.shape, self.granularity) * self._factor(path))

  def _factor(self, path):
    """What multiplies a leaf of feed-forward experts, so that their outputs grow by scale / gates.

    `scale` is shared among the matrices, as in the paper. `gates` is not: so it is exact for any activation.
    """
    if 'layer' not in path:
      return 1.0
    if path[-1] == OUTPUT_BIAS:
      return self.scale / self.granularity / self.gates
    gate = (*path[:-1], 'wg')
    gated = any(other[:len(gate)] == gate for other in self.shapes)
    return self.scale ** (1 / 3 if gated else 1 / 2) / (self.gates if path[-1] == OUTPUT else 1)

  def _noisy(self, path, bank):
    if not self.noise:
      return bank
    leaf_key = jax.random.fold_in(self.key, zlib.crc32(text(path).encode()) & 0x7FFFFFFF)
    return bank + self.noise * jnp.std(bank) * jax.random.normal(leaf_key, bank.shape, bank.dtype)


def text(path):
  """Returns a path as 'decoder/layers/3/layer/experts/wi'."""
  return '/'.join(map(str, path))


def _shapes(unrolled):
  shapes = {}
  layout.visit(unrolled, lambda path, leaf: shapes.setdefault(path, leaf.shape))
  return shapes


def _check(source, shapes):
  """Raises UserError unless dense leaves `source` and target paths `shapes` correspond one to one."""
  for path in source:
    if kind(path) != 'copied':
      raise errors.UserError(f'the start is not dense: it has {text(path)}')
  sparse_depths, dense_depths = _depths(shapes), _depths(source)
  for stack in sorted({*sparse_depths, *dense_depths}):
    if sparse_depths.get(stack) != dense_depths.get(stack):
      raise errors.UserError(f'{stack} has {dense_depths.get(stack, 0)} blocks in the dense model and '
                             f'{sparse_depths.get(stack, 0)} in the new one; they must be as many')
  needed = [path for path in shapes if kind(path) != 'fresh']
  origins = {path: _counterpart(path, source) for path in needed}
  for path, where in origins.items():
    if where is None:
      raise errors.UserError(f'{text(path)} {shapes[path]} of the new model has no counterpart in the dense '
                             f'model{_hint(path)}')
  for path in sorted(source.keys() - set(origins.values()), key=text):
    raise errors.UserError(f'{text(path)} {source[path].shape} of the dense model has no place in the new '
                           f'one{_hint(path)}')


def _hint(path):
  """'; nearest: ...' of the first key of a path, from its end, that has a hint."""
  hints = [HINTS[key] for key in reversed(path) if key in HINTS]
  return f'; {hints[0]}' if hints else ''


def _depths(paths):
  """Dict stack name -> number of blocks, of paths (..., stack, 'layers', number, ...)."""
  depths = {}
  for path in paths:
    if 'layers' in path:
      at = path.index('layers')
      depths[path[at - 1]] = max(depths.get(path[at - 1], 0), path[at + 1] + 1)
  return depths


def _counterpart(path, source):
  """The path in `source` that the target's leaf at `path` comes from, or None.

  An expert's leaf comes from the same leaf of the layer it replaces. That leaf is in the same wrapper, else
  in the wrappers (`inner`) around it.
  """
  if kind(path) == 'copied':
    return path if path in source else None
  at = path.index('experts')
  outer, name = path[:at], path[at + 1:]
  name = name[:1] if kind(path) == 'decomposed' else name
  while outer + name not in source and outer[-1] == 'inner':
    outer = outer[:-1]
  return outer + name if outer + name in source else None


def _same_shape(path, old, new):
  if tuple(old) != tuple(new):
    raise errors.UserError(f'{text(path)} is {tuple(old)} in the dense model and {tuple(new)} in the new one')


def _bank(path, leaves, shape, granularity):
  """[E, ...] from the M leaves of dense layers, each cut into G shards where it is G times longer."""
  experts, narrow = shape[0], tuple(shape[1:])
  whole = tuple(leaves[0].shape)
  cut = [axis for axis, (long, short) in enumerate(zip(whole, narrow)) if long != short]
  fits = len(whole) == len(narrow) and all(whole[axis] == granularity * narrow[axis] for axis in cut)
  if not fits or len(cut) > 1 or (granularity > 1 and not cut and path[-1] != OUTPUT_BIAS):
    raise errors.UserError(f'{text(path)} is {whole} in the dense model and {narrow} in an expert of the new '
                           f'one{_nearest_width(whole, narrow, granularity)}')
  if experts % (len(leaves) * granularity):
    unit = len(leaves) * granularity
    raise errors.UserError(f'{text(path)}: {experts} experts are not a multiple of {len(leaves)} dense '
                           f'models x {granularity} shards; nearest: {max(1, experts // unit) * unit}')
  shards = [part for leaf in leaves
            for part in (jnp.split(leaf, granularity, cut[0]) if cut else [leaf] * granularity)]
  bank = jnp.stack(shards)                                           # [M*G, ...]
  return jnp.tile(bank, (experts // len(bank), *[1] * len(narrow)))  # [E, ...]


def _core(path, leaves, shapes, granularity, noise):
  """The tensor at `path` of the chain that is a dense layer's matrix, the same for all experts."""
  if len(leaves) > 1 or granularity > 1 or noise:
    raise errors.UserError(f'{text(path)}: experts that share the centre of a chain begin as one dense '
                           'layer, without noise; nearest: one run, --granularity 1, --noise 0')
  owner = path[:path.index('experts') + 2]
  of_chain = lambda other: (CHAIN.index(other[len(owner)]), other[len(owner) + 1:])
  order = sorted((other for other in shapes if other[:len(owner)] == owner), key=of_chain)
  inward, outward = zip(*(shapes[other][-3:-1] for other in order))
  cores = chains.decompose(leaves[0], inward, outward, most=max(shapes[other][-4] for other in order))
  return jnp.broadcast_to(cores[order.index(path)], shapes[path])


def _nearest_width(whole, each, granularity):
  """'; nearest: ...' for an expert of shape `each` of a dense layer of shape `whole`."""
  for long, short in zip(whole, each):
    if long != short:
      fitting = long // short if long % short == 0 else 1
      return f'; nearest: d_ff={long // granularity}' + (
          f', or --granularity {fitting}' if fitting not in (1, granularity) else '')
  return '; nearest: --granularity 1'


def _group(leaf, path, shapes, granularity):
  """A router's leaf with its first N/G experts repeated G times each, along the last axis of N entries."""
  numbers = numbers_of_experts(path, shapes)
  matching = [axis for axis, size in enumerate(leaf.shape) if size in numbers]
  if not matching:
    return leaf
  first_experts = jax.lax.slice_in_dim(leaf, 0, leaf.shape[matching[-1]] // granularity, axis=matching[-1])
  return jnp.repeat(first_experts, granularity, axis=matching[-1])


def numbers_of_experts(path, shapes):
  """Returns the set of numbers of experts of the banks that the router with the leaf at `path` chooses from.

  Args:
    shapes: dict path -> shape of the model.
  """
  above = path[:next(at for at, key in enumerate(path) if key in ROUTING)]
  below = lambda above: {shape[0] for path, shape in shapes.items()
                         if path[:len(above)] == above and 'experts' in path}
  while not below(above):                # a router of a turn has its experts beside it
    above = above[:-1]
  return below(above)
