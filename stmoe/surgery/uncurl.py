"""UNCURL: experts that a task's tokens are routed to alike become one, with their part of the router.

Sarkar et al., "Task Specific Expert Pruning" (arXiv:2409.01483). Only the paper's abstract was at hand:
pruning after training, for a task, with a number of experts that adapts to the layer. The algorithm is our
reconstruction (unverified). Router logits of a task's tokens are compared, column with column, by 1 - cosine.
Clusters of like experts become one expert, and so do their columns.

  stmoe compress runs/full uncurl:keep=0.25 --workdir runs/task --config.data.files=TASK.txt
"""

import ml_collections
import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance

from stmoe import errors
from stmoe import ranges
from stmoe.core import contract
from stmoe.surgery import aside
from stmoe.surgery import fewer
from stmoe.surgery import merge
from stmoe.surgery import sparse
from stmoe.surgery import sub_moe


def _agglomerated(cosines, number, first):
  """Groups by average linkage of 1 - cosine."""
  label = hierarchy.cut_tree(_links(cosines), n_clusters=number)[:, 0] if len(cosines) > 1 else np.zeros(1)
  return sorted(np.flatnonzero(label == group).tolist() for group in np.unique(label))


# Groups of experts, lists of their members, by (cosines [E,E], their number, the most used expert).
CLUSTERINGS = {'agglomerative': _agglomerated, 'k_means': sub_moe.clusters}


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, clustering: ranges.Choice(*CLUSTERINGS) = 'agglomerative',
            member: ranges.Choice('mean', 'used') = 'mean',
            adaptive: ranges.Flag = False) -> tuple[dict, dict]:
  """Returns (params, changes) with one expert for each cluster of every layer's experts; see `sparse`.

  Args:
    keep:       one over the paper's pruning factor: clusters over experts.
    clustering: 'agglomerative' by average linkage, or 'k_means' of the columns at length 1.
    member:     a cluster becomes its 'mean' by usage, or its most 'used' member; so does its column.
    adaptive:   layers may differ: the closest experts of the whole network are joined, as many as
      `keep` leaves in all. `fewer.apart` says how such layers are stored.
  """
  layers = sparse.found(config)
  numbers, least = _numbers(layers, params, keep, adaptive)
  statistics = calibration('load', 'logit_products')
  cosines = [cosine(statistics[layer.name]['logit_products']) for layer in layers]
  if adaptive:
    numbers = allocated([heights(own) for own in cosines], sum(numbers), least)
  changes = fewer.apart(config, layers, {layer.path: number for layer, number in zip(layers, numbers)})
  replaced = aside.Made()
  for layer, new, own, number in zip(layers, sparse.found(sparse.changed(config, changes)), cosines, numbers):
    used = merge.usage(statistics[layer.name]['load'][:layer.num_experts])
    members = CLUSTERINGS[clustering](own, number, int(np.argmax(used)))
    if member == 'used':
      members = [[max(group, key=lambda expert: used[expert])] for group in members]
    parts = fewer.shares(members, used)
    replaced |= {(*layer.path, 'experts', *path): fewer.mixed(parts, array)
                 for path, array in layer.owned(params).items()}
    replaced |= fewer.averaged(layer, new, params, parts)
  return sparse.replaced(params, replaced), changes


def _numbers(layers, params, keep, adaptive):
  """(experts of each layer, experts that a token has there); of adaptive layers the sum alone is meant."""
  numbers = [sparse.share(layer.num_experts, keep) for layer in layers]
  least = [contract.offered(layer.module.router, 'k') or 1 for layer in layers]
  for layer, number in zip(layers, numbers):
    fewer.check(layer, params, layer.num_experts if adaptive else number, keep)
  if sum(numbers) < sum(least):
    total = sum(layer.num_experts for layer in layers)
    raise errors.UserError(f'keep={keep} leaves {sum(numbers)} experts to layers whose tokens have '
                           f'{sum(least)}; nearest: keep={sum(least) / total:g}')
  return numbers, least


def cosine(products: np.ndarray) -> np.ndarray:
  """Returns [E,E], cosines of columns of logits from their inner products [E,E]; 1 on the diagonal."""
  return 2 * merge.similarity(products) - 1


def heights(cosines: np.ndarray) -> np.ndarray:
  """Returns f[E-1], rising: at which distance 1 - cosine each of the joins of a layer's experts happens.

  >>> heights(np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])).tolist()
  [0.5, 0.875]
  """
  return _links(cosines)[:, 2] if len(cosines) > 1 else np.zeros(0)


def _links(cosines):
  return hierarchy.linkage(distance.squareform(1 - cosines, checks=False), 'average')


def allocated(joins: list[np.ndarray], target: int, least: list[int]) -> list[int]:
  """Returns the experts of each layer, `target` in all: the lowest `joins` of all layers are made.

  Args:
    joins: `heights` of each layer; least: experts that a layer keeps, at most `target` together.

  >>> allocated([np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])], 5, [1, 1])
  [1, 4]
  """
  possible = [(height, layer) for layer, own in enumerate(joins)
              for height in own[:len(own) + 1 - least[layer]]]
  numbers = [len(own) + 1 for own in joins]
  for _, layer in sorted(possible)[:sum(numbers) - target]:
    numbers[layer] -= 1
  return numbers
