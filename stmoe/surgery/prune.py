"""Pruning of experts: the best experts of every layer stay, with their part of the router.

Z-code M3 (arXiv:2109.10465) keeps the most used experts for inference. REAP (arXiv:2510.13999) keeps the
experts whose weighted outputs are longest. Tokens choose among the experts that stay, by the router's own
rule.
"""

import zlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.core import contract
from stmoe.surgery import layout
from stmoe.surgery import sparse


def _usage(layers, params, calibration, seed):
  return {name: sums['load'] for name, sums in calibration('load').items()}


def _reap(layers, params, calibration, seed):
  """REAP: the mean of g ||f(x)|| over the tokens that an expert computes; 0 for an expert without tokens."""
  scores = {}
  for name, sums in calibration('coactivation', 'weighted_norms').items():
    tokens = np.diagonal(sums['coactivation'])                       # [E]
    scores[name] = sums['weighted_norms'] / np.maximum(tokens, 1)
  return scores


def _magnitude(layers, params, calibration, seed):
  """The Euclidean norm of all weights of an expert."""
  norm = lambda arrays: np.sqrt(sum(np.square(np.float64(a)).reshape(len(a), -1).sum(1) for a in arrays))
  return {layer.name: norm(layer.owned(params).values()) for layer in layers}


def _random(layers, params, calibration, seed):
  draw = lambda name, number: np.random.default_rng([seed, zlib.crc32(name.encode())]).random(number)
  return {layer.name: draw(layer.name, layer.num_experts) for layer in layers}


# What says which experts stay: functions that return dict layer -> f[E], the larger the better.
SCORES = {'usage': _usage, 'reap': _reap, 'magnitude': _magnitude, 'random': _random}


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, by: ranges.Choice(*SCORES) = 'usage',
            seed: ranges.Seed = 0) -> tuple[dict, dict]:
  """Returns (params, changes) with share `keep` of the experts of every layer; see `sparse`.

  Args:
    by:   'usage' keeps the most chosen experts. 'reap' keeps the experts with the largest mean of
      weight times length of output. 'magnitude' keeps the experts with the largest weights, 'random' any.
    seed: of 'random'.
  """
  layers = sparse.found(config)
  numbers = sparse.kept(layers, keep)
  for layer in layers:
    _check(layer, params, numbers[layer.where], keep)
  changes = {f'{where}.router.num_experts': number for where, number in numbers.items()}
  fewer = sparse.found(sparse.changed(config, changes))              # raises what routers say of the number
  scores = SCORES[by](layers, params, calibration, seed)
  replaced: dict[tuple, object] = {}
  for layer, fewer_layer in zip(layers, fewer):
    stay = best(scores[layer.name], numbers[layer.where])
    replaced |= {(*layer.path, 'experts', *path): array[stay] for path, array in layer.owned(params).items()}
    replaced |= _routing(layer, fewer_layer, params, stay)
  return sparse.replaced(params, replaced), changes


def best(scores: np.ndarray, number: int) -> np.ndarray:
  """Returns i[number]: the experts with the largest of `scores` f[E], in order; of equal experts the first.

  >>> best(np.array([1.0, 3.0, 2.0, 3.0]), 2).tolist()
  [1, 3]
  """
  return np.sort(np.argsort(-np.asarray(scores), kind='stable')[:number])


def _check(layer, params, number, keep):
  """Raises UserError for a router whose experts cannot become fewer by cutting its arrays."""
  router, name = layer.module.router, type(layer.module.router).__module__.rpartition('.')[2]
  k = contract.offered(router, 'k') or 1
  if number < k:
    raise errors.UserError(f'keep={keep} leaves {number} of {layer.num_experts} experts in {layer.where}, '
                           f'and a token has {k}; nearest: keep={k / layer.num_experts:g}')
  if hasattr(router, 'inner'):
    raise errors.UserError(f'{layer.where}.router is {name}, around another router; prune before that')
  if contract.offered(router, 'reach') not in (None, layer.num_experts):
    raise errors.UserError(f'{layer.where}.router: a token of {name} chooses within groups of experts, which '
                           'would not be of one size any more; nearest: merge')
  _check_ties(layer, params, name)
  for path, array in layer.arrays(params, 'router').items():
    if array.ndim and jnp.issubdtype(array.dtype, jnp.integer):
      raise errors.UserError(f'{layer.where}.router: {".".join(map(str, path))} of {name} is a table of '
                             'experts, which does not say who comes instead of one; nearest: merge')


def _check_ties(layer, params, name):
  """Raises UserError if the router has arrays of experts that other layers have, too."""
  ties = contract.offered(layer.module.router, 'ties')
  if ties is None:
    return
  held = layout.at(params, (*layer.path[:layer.path.index('layers')], 'tied', ties[0]))
  if any(layer.num_experts in array.shape for array in jax.tree.leaves(held)):
    raise errors.UserError(f'{layer.where}.router: {name} has arrays of experts in common with other layers, '
                           'of which each would lose others; nearest: merge')


def _routing(layer, new, params, stay):
  """Dict path -> array [...] of the router for the experts `stay` i[E'] of E.

  An axis of experts is an axis that is shorter in `new`, the layer with E' experts. Entries behind the E
  experts there, such as virtual experts, stay.
  """
  gone, cut = layer.num_experts - new.num_experts, {}
  for path, array in layer.arrays(params, 'router').items():
    _, shape = new.axes('router')[path]
    for axis, (size, fewer_size) in enumerate(zip(array.shape, shape, strict=True)):
      if size == fewer_size:
        continue
      if size - fewer_size != gone or size < layer.num_experts:
        raise errors.UserError(f'{layer.where}.router: {".".join(map(str, path))} has {size} entries with '
                               f'{layer.num_experts} experts, {fewer_size} with {new.num_experts}; nearest: '
                               'merge')
      array = array.take(np.concatenate([stay, np.arange(layer.num_experts, size)]), axis=axis)
    cut[(*layer.path, 'router', *path)] = array
  return cut
