"""Pruning of experts: the best experts of every layer stay, with their part of the router.

Z-code M3 (arXiv:2109.10465) keeps the most used experts for inference. REAP (arXiv:2510.13999) keeps the
experts whose weighted outputs are longest. Tokens choose among the experts that stay, by the router's own
rule.
"""

import zlib

import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import fewer
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


def _among(config, numbers):
  """Changes that let routers choose among the experts that stay, and give these experts new numbers."""
  router = lambda where: sparse.section(config, f'{where}.router').to_dict()
  among = lambda where: dict(name='among', inner=router(where))
  return {f'{where}.router': dict(name='remap', num_experts=number, inner=among(where))
          for where, number in numbers.items()}


def _whole(layer, new, params, stay):
  """Dict path -> the router of `_among`, whose own arrays stay."""
  table = np.full(layer.num_experts, -1, np.int32)
  table[stay] = np.arange(len(stay))
  own = dict(inner=sparse.router(layer, params), stay=jnp.asarray(table >= 0, jnp.int32))
  return {(*layer.path, 'router'): dict(inner=own, table=jnp.asarray(table))}


# What becomes of routers: functions of (config, dict where -> E'), and of (layer, its new form, parameters,
# experts that stay).
CHANGES = {'new': lambda config, numbers: {f'{where}.router.num_experts': n for where, n in numbers.items()},
           'old': _among}
ROUTERS = {'new': fewer.cut, 'old': _whole}


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, by: ranges.Choice(*SCORES) = 'usage', seed: ranges.Seed = 0,
            gates: ranges.Choice('new', 'old') = 'new') -> tuple[dict, dict]:
  """Returns (params, changes) with share `keep` of the experts of every layer; see `sparse`.

  Args:
    by:   'usage' keeps the most chosen experts. 'reap' keeps the experts with the largest mean of
      weight times length of output. 'magnitude' keeps the experts with the largest weights, 'random' any.
    seed: of 'random'.
    gates: 'new': the router forgets the experts that go, and gates grow. 'old': gates stay what they were,
      the router choosing among the experts that stay, and a token keeps all its choices; see
      `routers/wrappers/among.py`.
  """
  layers = sparse.found(config)
  numbers = sparse.kept(layers, keep)
  for layer in layers:
    fewer.check(layer, params, numbers[layer.where], keep)
  changes = CHANGES[gates](config, numbers)
  new_layers = sparse.found(sparse.changed(config, changes))         # raises what routers say of the number
  scores = SCORES[by](layers, params, calibration, seed)
  replaced = aside.Made()
  for layer, new_layer in zip(layers, new_layers):
    stay = best(scores[layer.name], numbers[layer.where])
    replaced |= {(*layer.path, 'experts', *path): array[stay] for path, array in layer.owned(params).items()}
    replaced |= ROUTERS[gates](layer, new_layer, params, stay)
  return sparse.replaced(params, replaced), changes


def best(scores: np.ndarray, number: int) -> np.ndarray:
  """Returns i[number]: the experts with the largest of `scores` f[E], in order; of equal experts the first.

  >>> best(np.array([1.0, 3.0, 2.0, 3.0]), 2).tolist()
  [1, 3]
  """
  return np.sort(np.argsort(-np.asarray(scores), kind='stable')[:number])
