"""Merging of experts: a group that is routed alike becomes one expert, its usage-weighted mean (M-SMoE).

Li et al., "Merge, Then Compress" (arXiv:2310.01334). Hidden units of all experts are permuted to the units of
expert 0, which changes no function. The most used experts are the heads of groups. Every other expert
joins the head whose router logits are most like its own, or whose weights or router columns are. The router
stays as it is, inside of `routers/wrappers/remap.py`.

Differs: a group of one expert stays as it is; in the reference it is multiplied by f / (f + 1e-7), f being
  its usage. A group that nothing uses is the plain mean of its experts; in the reference it is 0. As many
  groups as experts leave every expert; in the reference the least used expert of a network joins another.
"""

import fnmatch
import math
import typing

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from scipy import optimize

from stmoe import errors
from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import fewer
from stmoe.surgery import sparse

HIDDEN = 'expert_mlp'                    # the logical axis of hidden units
HIDDEN_ITEMS = ('tokens', 'hidden_sums', 'hidden_squares', 'hidden_products')
# Of the members of a group, by their usage f[n], the head's first.
WEIGHTS: dict[str, typing.Callable[[np.ndarray], np.ndarray]] = {
    'usage': lambda f: f,
    'uniform': np.ones_like,
    'head': lambda f: np.arange(len(f)) == 0,
}


# By what experts are compared: functions of (layer, all parameters, configuration, the layer's bank with its
# hidden units in order, its statistics) -> products [E,E] of two experts each, see `similarity`.
BASES: dict[str, typing.Callable[..., np.ndarray]] = {
    'logits': lambda layer, params, config, bank, statistics: statistics['logit_products'],
    'weights': lambda layer, params, config, bank, statistics: _products(np.concatenate(
        [np.asarray(array, np.float64).reshape(layer.num_experts, -1) for array in bank.values()], axis=1)),
    'router': lambda layer, params, config, bank, statistics: _products(fewer.rows(layer, params, config)),
}


def _products(rows):
  """[E,E], the inner products of rows [E,N]."""
  return rows @ rows.T


def _by_layer(layers, used, keep, merged):
  """Dict layer name -> groups, as many in each that is merged."""
  return {layer.name: sparse.share(layer.num_experts, keep) if layer.name in merged else layer.num_experts
          for layer in layers}


def _globally(layers, used, keep, merged):
  """Dict layer name -> groups, by `allocated`."""
  sizes = {layer.num_experts for layer in layers}
  if len(sizes) > 1:
    raise errors.UserError(f'allocation=global needs layers of one number of experts; these have '
                           f'{", ".join(map(str, sorted(sizes)))}; nearest: allocation=layer')
  average = sparse.share(sizes.pop(), keep)
  names = [layer.name for layer in layers]
  numbers = allocated(np.stack([used[name] for name in names]), average,
                      np.array([name in merged for name in names]))
  return {layer.name: int(number) for layer, number in zip(layers, numbers)}


# How many groups layers have: functions of (layers, dict name -> usage f[E], keep, names of merged layers).
ALLOCATIONS = {'layer': _by_layer, 'global': _globally}


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, allocation: ranges.Choice(*ALLOCATIONS) = 'layer',
            by: ranges.Choice(*BASES) = 'logits', weights: ranges.Choice(*WEIGHTS) = 'usage',
            align: ranges.Choice('weights', 'activations', 'none') = 'weights',
            capacity: ranges.Count | None = None, whole: ranges.Text = '') -> tuple[dict, dict]:
  """Returns (params, changes) with the experts of every layer in groups, an expert for each; see `sparse`.

  Args:
    keep:       groups over experts.
    allocation: 'layer': as many groups in each; 'global': by the usage of all layers of the network together,
      as in the paper. A layer's bank is then as large as the largest of its letter: the rest is never used.
    by:         what makes experts alike: the cosines of their router 'logits' on the data (published), of
      their 'weights', hidden units in order, or of their columns of the 'router'.
    weights:    of members: 'usage', 'uniform', or the 'head' alone, to which other members are redirected.
    align:      how hidden units are made alike first: their 'weights', or their 'activations' on the data.
    capacity:   most members of a group.
    whole:      layers that keep all experts: a name or a pattern, such as 'encoder_01', of which the paper
      leaves one. Such a layer has a letter of its own, see `fewer.apart`; '' = none.
  """
  layers = sparse.found(config)
  statistics = calibration('load', *(['logit_products'] if by == 'logits' else []),
                           *(HIDDEN_ITEMS if align == 'activations' else []))
  used = {layer.name: usage(statistics[layer.name]['load'][:layer.num_experts]) for layer in layers}
  merged = {layer.name for layer in layers if not fnmatch.fnmatchcase(layer.name, whole)}
  groups = ALLOCATIONS[allocation](layers, used, keep, merged)
  numbers = {layer.name: _most(layer, layers, groups, merged) for layer in layers}
  replacements = aside.Made()
  for layer in layers:
    layer_usage, seen = used[layer.name], statistics[layer.name]
    bank = _alike(layer, layer.owned(params), seen, align)
    alike = similarity(BASES[by](layer, params, config, bank, seen))
    members = grouped(layer_usage, alike, groups[layer.name], capacity)
    weigh = [WEIGHTS[weights](layer_usage[group]) for group in members]
    replacements |= {(*layer.path, 'experts', *path): _filled(array, members, weigh, numbers[layer.name])
                     for path, array in bank.items()}
    replacements[(*layer.path, 'router')] = dict(inner=sparse.router(layer, params), table=table(members))
  changes = remapped(config, {layer.where: numbers[layer.name] for layer in layers})
  if len(merged) < len(layers):
    changes |= fewer.apart(sparse.changed(config, changes), layers,
                           {layer.path: numbers[layer.name] for layer in layers})
  return sparse.replaced(params, replacements), changes


def _most(layer, layers, groups, merged):
  """The experts in the bank of a layer: the most groups that a merged layer of its letter has."""
  peers = [peer.name for peer in layers if peer.where == layer.where and peer.name in merged]
  return max(groups[name] for name in (peers if layer.name in merged else [layer.name]))


def remapped(config: ml_collections.ConfigDict, numbers: dict[str, int]) -> dict[str, object]:
  """Returns the changes that put the routers of layers inside of `remap` to so many experts.

  Args:
    numbers: dict where -> E', of groups of layers.
  """
  return {f'{where}.router': dict(name='remap', num_experts=number,
                                  inner=sparse.section(config, f'{where}.router').to_dict())
          for where, number in numbers.items()}


def _alike(layer, bank, statistics, align):
  """`bank` with the hidden units of every expert in the order that `align` says."""
  if align == 'none':
    return bank
  scores = correlation(*(statistics[name] for name in HIDDEN_ITEMS)) if align == 'activations' else None
  return aligned(bank, layer.axes('experts'), scores)


def usage(load: np.ndarray) -> np.ndarray:
  """Returns f[E], the shares of choices that experts have, from their numbers [E]; 0 without any choice.

  >>> usage(np.array([3.0, 1.0])).tolist()
  [0.75, 0.25]
  """
  return load / max(float(load.sum()), 1.0)


def similarity(products: np.ndarray) -> np.ndarray:
  """Returns [E,E]: (cos + 1) / 2 of what two experts have, such as their logits; 1 on the diagonal.

  Args:
    products: [E,E], inner products of what two experts have.

  >>> similarity(np.array([[4.0, 0.0], [0.0, 1.0]])).tolist()
  [[1.0, 0.5], [0.5, 1.0]]
  """
  length = np.sqrt(np.diagonal(products))
  cosine = products / np.maximum(np.outer(length, length), 1e-30)
  alike = (cosine + 1) / 2
  np.fill_diagonal(alike, 1)
  return alike


def allocated(used: np.ndarray, average: int, merged: np.ndarray) -> np.ndarray:
  """Returns i[L], the groups of every layer, `average` on average over the layers that are merged.

  Layers whose usage is skewed keep few groups. With many experts that nothing uses, or with ties, fewer
  groups than that remain.

  Args:
    used:   f[L,E] of all layers, of one number of experts.
    merged: bool[L].

  The usage of the first layer is more skewed:

  >>> allocated(np.array([[0.7, 0.1, 0.1, 0.1], [0.3, 0.3, 0.25, 0.15]]), 2, np.array([True, True])).tolist()
  [1, 3]
  """
  used, experts = np.array(used, np.float64), used.shape[1]
  if average == experts:
    return np.full(len(used), experts)
  used[~merged] = 1
  used[np.arange(len(used)), used.argmax(1)] = 1
  falling = np.sort(used, axis=None)[::-1]
  threshold = falling[average * merged.sum() + experts * (~merged).sum()]
  return (used > threshold).sum(1)


def grouped(used: np.ndarray, alike: np.ndarray, number: int, capacity: int | None = None) -> list[list[int]]:
  """Returns the list of `number` lists of experts, the head of each first, in order of the heads.

  The most used experts are the heads. By falling usage, every other expert joins the head it is most like.

  Args:
    used:     f[E]; alike: [E,E]; of equal experts the first counts.
    capacity: members with which a group takes no more.

  >>> alike = np.array([[1, 0, 0.9, 0.2], [0, 1, 0.1, 0.3], [0.9, 0.1, 1, 0], [0.2, 0.3, 0, 1]])
  >>> grouped(np.array([0.1, 0.2, 0.4, 0.3]), alike, 2)
  [[2, 0], [3, 1]]
  """
  order = np.argsort(-used, kind='stable').tolist()
  groups = {head: [head] for head in order[:number]}
  for expert in order[number:]:
    open_heads = [head for head in groups if capacity is None or len(groups[head]) < capacity]
    if not open_heads:
      raise errors.UserError(f'capacity={capacity}: {number} groups do not hold {len(used)} experts; '
                             f'nearest: capacity={math.ceil(len(used) / number)}')
    groups[max(open_heads, key=lambda head: alike[expert, head])].append(expert)
  return [groups[head] for head in sorted(groups)]


def table(members: list[list[int]]) -> jax.Array:
  """Returns i32[E], the group of every expert, from the list of the groups.

  >>> table([[2, 0], [3, 1]]).tolist()
  [0, 1, 0, 1]
  """
  number = {expert: group for group, experts in enumerate(members) for expert in experts}
  return jnp.asarray([number[expert] for expert in range(len(number))], jnp.int32)


def mean(array: jax.Array, experts: list[int], weights: np.ndarray) -> jax.Array:
  """Returns [...], the mean of array [E,...] over the list `experts`, weighted by f[n]; one alone as is."""
  if len(experts) == 1:
    return array[experts[0]]
  weights = np.ones(len(experts)) if not weights.sum() else weights
  share = jnp.asarray(weights / weights.sum(), array.dtype)
  return jnp.tensordot(share, array[np.array(experts)], 1, precision='highest')


def _filled(array, members, weights, number):
  """[number,...]: the means over groups; the first mean again in place of experts that nothing reaches."""
  means = [mean(array, experts, weight) for experts, weight in zip(members, weights)]
  return jnp.stack(means + means[:1] * (number - len(means)))


def correlation(tokens: float, sums: np.ndarray, squares: np.ndarray, products: np.ndarray) -> np.ndarray:
  """Returns [E,F,F]: how the activations of expert 0's hidden units go with the units of each expert.

  Covariances over the product of the standard deviations plus 1e-7: 0 for a constant unit.

  Args:
    tokens: f[]; sums, squares: [E,F] over tokens; products: [E,F,F] sums of h_0 h_e.
  """
  freedom = max(float(tokens) - 1, 1.0)
  covariance = (products - sums[0][:, None] * sums[:, None] / max(float(tokens), 1.0)) / freedom
  spread = np.sqrt(np.maximum(squares - sums * sums / max(float(tokens), 1.0), 0) / freedom)     # [E, F]
  return covariance / (spread[0][:, None] * spread[:, None] + 1e-7)


def aligned(bank: dict, named: dict, scores: np.ndarray | None = None) -> dict:
  """Returns `bank` with the hidden units of every expert in the order that is most like expert 0's.

  The function of no expert changes. Matrices without hidden units stay as they are, and so do matrices of
  hidden units that all experts share.

  Args:
    bank:   dict path -> array [E,...] of experts.
    named:  dict path -> (logical axes, shape), of shared arrays, too.
    scores: [E,F,F], how alike hidden units of expert 0 and of each expert are; None = the inner products of
      their weights. Raises UserError for scores of a bank whose hidden units are not one layer.
  """
  bank_in_order, layers = dict(bank), []
  for owner in sorted({path[:-1] for path in bank}, key=str):
    units = {path: names.index(HIDDEN) for path, (names, _) in named.items()
             if path[:-1] == owner and HIDDEN in names}
    if units and units.keys() <= bank.keys():
      layers.append(units)
  if scores is not None and len(layers) != 1:
    raise errors.UserError('align=activations is for experts of one hidden layer; nearest: align=weights')
  for units in layers:
    # [E, F, ...]: what belongs to a hidden unit, side by side.
    rows = {path: np.moveaxis(np.asarray(bank[path]), axis, 1) for path, axis in units.items()}
    matrices = [rows[path].reshape(*rows[path].shape[:2], -1) for path in rows if rows[path].ndim > 2]
    joined = np.concatenate(matrices, -1)                            # [E, F, N]
    alike = joined[0] @ joined.swapaxes(1, 2) if scores is None else scores
    orders = np.stack([matching(score) for score in alike])          # [E, F]
    for path, axis in units.items():
      ordered = np.take_along_axis(rows[path], orders.reshape(*orders.shape, *[1] * (rows[path].ndim - 2)), 1)
      bank_in_order[path] = jnp.asarray(np.moveaxis(ordered, 1, axis))
  return bank_in_order


def matching(score: np.ndarray) -> np.ndarray:
  """Returns i[F]: for each row of `score` [F,F] a column of its own, with the largest sum that is possible.

  >>> matching(np.array([[0, 1, 0], [0, 0, 1], [1, 0, 9]])).tolist()
  [1, 0, 2]
  """
  return optimize.linear_sum_assignment(score, maximize=True)[1]
