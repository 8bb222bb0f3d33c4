"""STUN: experts that behave alike are clustered by a distance, and one of each cluster stays.

Lee et al., "Structured-Then-Unstructured Pruning" (arXiv:2409.06211). This is the first half. The second is
`wanda` on the run that comes out: of shares s and u that the two leave, s * u of the experts' weights stay.
One threshold of the distance holds for all layers. The threshold is searched until the network has the number
of experts that is asked for. So layers end with different numbers; `fewer.apart` says how they are stored.

  stmoe compress runs/full stun:keep=0.8 --workdir runs/fewer
  stmoe compress runs/fewer wanda:keep=0.75 --workdir runs/small            0.6 of the experts' weights

Differs: no layer loses so many experts that a token could not have its k. The search gives up with a line
  that names what it reached, where the released script ends.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.core import contract
from stmoe.surgery import aside
from stmoe.surgery import fewer
from stmoe.surgery import sparse

PATIENCE = 10                            # trials in a row with one number of experts, after which it is over


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.8, by: ranges.Choice('router', 'coactivation', 'both') = 'router',
            normed: ranges.Flag = False, weight: ranges.NonNegative = 1.0, threshold: ranges.Any = 0.5,
            move: ranges.Positive = 0.1, most: ranges.Count | None = None,
            means: ranges.Natural = 2) -> tuple[dict, dict]:
  """Returns (params, changes) with share `keep` of all experts of the network together; see `sparse`.

  Args:
    by:        distance of two experts: of their 'router' columns, their 'coactivation' as the two experts a
      token likes most, which needs data, or 'both'.
    normed:    router distances are divided by the norm of the whole router; not in 'both'.
    weight:    lambda of the co-activation in 'both'.
    threshold: first one of the search; move: its first step.
    most:      merges in a layer; None = as many as leave a token its k.
    means:     a layer that has no more clusters than this gets their means instead of members.
  """
  layers = sparse.found(config)
  for layer in layers:
    fewer.check(layer, params, layer.num_experts, keep)
  target, merges = _wanted(layers, keep, most)
  counts = calibration('first_two') if by != 'router' else {}
  distances = [_distance(layer, params, config, counts, by, normed, weight) for layer in layers]
  clusters, _ = searched(distances, target, merges, threshold, move)
  changes = fewer.apart(config, layers, {layer.path: len(own) for layer, own in zip(layers, clusters)})
  replaced = aside.Made()
  for layer, new, own in zip(layers, sparse.found(sparse.changed(config, changes)), clusters):
    bank = layer.owned(params)
    if len(own) > means:
      stay = np.array([representative([*bank.values()], members) for members in own])
      kept, routing = {path: array[stay] for path, array in bank.items()}, fewer.cut(layer, new, params, stay)
    else:
      shares = fewer.shares(own, np.ones(layer.num_experts))
      kept = {path: fewer.mixed(shares, array) for path, array in bank.items()}
      routing = fewer.averaged(layer, new, params, shares)
    replaced |= {(*layer.path, 'experts', *path): array for path, array in kept.items()} | routing
  return sparse.replaced(params, replaced), changes


def _wanted(layers, keep, most):
  """(experts of the network, merges of each layer at most); raises UserError where tokens lack experts."""
  total = sum(layer.num_experts for layer in layers)
  least = [contract.offered(layer.module.router, 'k') or 1 for layer in layers]
  merges = [min(layer.num_experts - k, layer.num_experts if most is None else most)
            for layer, k in zip(layers, least)]
  target = sparse.share(total, keep)
  fewest = total - sum(merges)
  if target < fewest:
    raise errors.UserError(f'keep={keep} leaves {target} of {total} experts; {fewest} stay at least, by the '
                           f'k of tokens and by most={most}; nearest: keep={fewest / total:g}')
  return target, merges


def _distance(layer, params, config, counts, by, normed, weight):
  if by == 'coactivation':
    return coactivation_distance(counts[layer.name]['first_two'])
  apart = router_distance(fewer.rows(layer, params, config), normed and by == 'router')
  if by == 'both':
    apart = weight * coactivation_distance(counts[layer.name]['first_two']) + apart
  return apart


def router_distance(rows: np.ndarray, normed: bool = False) -> np.ndarray:
  """Returns [E,E], the lengths of the differences of rows [E,N]; `normed`: over the norm of all rows.

  >>> float(router_distance(np.array([[0.0, 3.0], [4.0, 0.0]]))[0, 1])
  5.0
  """
  apart = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
  return apart / np.linalg.norm(rows) if normed else apart


def coactivation_distance(counts: np.ndarray) -> np.ndarray:
  """Returns [E,E]: minus counts [E,E] over their mean, at most 0; 0 without counts.

  >>> float(coactivation_distance(np.array([[0.0, 6.0], [6.0, 0.0]]))[0, 1])
  -2.0
  """
  mean = abs(counts.mean())
  return -counts / (mean if mean else 1.0)


def clustered(distance: np.ndarray, threshold: float, most: int) -> list[list[int]]:
  """Returns the clusters of experts, lists of their members, in order of the first member.

  The closest pair joins its clusters if none of these distances reaches the threshold: of a member of one
  cluster to the pair's expert of the other. Distances that served are gone. A pair that does not join is
  barred: clusters that hold its experts cannot join through them.

  Args:
    distance: [E,E]; of equal pairs the first counts.
    most:     clusters that may join.

  >>> clustered(np.array([[0, 1, 9], [1, 0, 2], [9, 2, 0]]), 5.0, 3)
  [[0, 1], [2]]
  """
  left = np.array(distance, np.float64)
  np.fill_diagonal(left, np.inf)
  label, joined = np.arange(len(left)), 0
  while joined < most:
    i, j = np.unravel_index(np.argmin(left), left.shape)
    if not left[i, j] < threshold:
      break
    of_i, of_j = label == label[i], label == label[j]
    if max(left[of_i, j].max(), left[of_j, i].max()) < threshold:
      left[of_i, j] = left[of_j, i] = np.inf
      label[of_i | of_j] = min(label[i], label[j])
      joined += 1
    else:
      left[i, j] = left[j, i] = np.inf
  return [np.flatnonzero(label == first).tolist() for first in np.unique(label)]


def searched(distances: Sequence[np.ndarray], target: int, most: Sequence[int], threshold: float = 0.5,
             step: float = 0.1) -> tuple[list[list[list[int]]], list[float]]:
  """Returns (clusters of every layer, `target` in all; the thresholds that were tried, the right one last).

  The step doubles at every trial until the direction changes, and is halved at every later trial.

  Args:
    distances: [E,E] of every layer; most: merges of every layer.
  """
  total, tried, counts, before, turned = sum(map(len, distances)), [threshold], [], 0, False
  if target == total:
    return [[[expert] for expert in range(len(distance))] for distance in distances], []
  while True:
    clusters = [clustered(distance, tried[-1], n) for distance, n in zip(distances, most)]
    counts.append(sum(map(len, clusters)))
    if counts[-1] == target:
      return clusters, tried
    if len(counts) >= PATIENCE and len(set(counts[-PATIENCE:])) == 1:
      near = min(counts, key=lambda count: abs(count - target))
      raise errors.UserError(f'keep={target / total:g}: no threshold was found that leaves {target} of '
                             f'{total} experts; nearest: keep={near / total:g}')
    direction = 1 if counts[-1] > target else -1
    turned = turned or before not in (0, direction)
    step, before = step / 2 if turned else step * 2, direction
    tried.append(tried[-1] + step * direction)


def representative(arrays: Sequence[jax.Array], members: list[int]) -> int:
  """Returns the member whose weights are closest to the mean of all members, of arrays [E,...].

  Of members that are equally close, as both of a pair are, the first counts.
  """
  apart = np.zeros(len(members))
  for array in arrays:
    own = jnp.asarray(array)[np.array(members)].reshape(len(members), -1)
    apart += np.float64(jnp.square(own - own.mean(0)).sum(1))
  return members[int(np.argmax(apart <= np.min(apart) * (1 + 1e-5)))]
