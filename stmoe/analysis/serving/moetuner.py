"""MoETuner: experts on devices, balanced by load and near those that tokens go to next (arXiv:2502.06643).

Two programs. The first clusters the experts of each layer, E / G of them for each of G devices, so that the
largest load is least. The second gives clusters to devices, so that tokens cross little between layers.
Differs: the paper's exact constraints are unverified; these are the two stages in our formulation. After an
ordinary dispatch and combine tokens go home between layers: then only the balance matters.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import optimize
from scipy import sparse

from stmoe import errors
from stmoe.analysis import serving

EXACT = 5                                # devices up to which the second program is solved exactly
SECONDS = 20.0                           # that a layer's first program may take


def transitions(trace: serving.Trace) -> np.ndarray:
  """Returns i64[L-1,E,E], how often a token goes from each expert of a layer to each of the next layer.

  >>> transitions(serving.Trace(np.array([[[0], [1]], [[0], [1]]]), 2)).tolist()
  [[[0, 2], [0, 0]]]
  """
  layers, number = trace.chosen.shape[1], trace.num_experts
  counts = np.zeros((max(layers - 1, 0), number, number), np.int64)
  for layer in range(layers - 1):
    here, there = trace.chosen[:, layer, :, None], trace.chosen[:, layer + 1, None, :]
    here, there = np.broadcast_arrays(here, there)
    real = (here >= 0) & (there >= 0)
    np.add.at(counts[layer], (here[real], there[real]), 1)
  return counts


def distances(devices: int, nodes: int, far: float = 4.0) -> np.ndarray:
  """Returns f64[G,G]: 0 on a device, 1 within a node, `far` between nodes of equally many devices.

  >>> distances(4, 2)[0].tolist()
  [0.0, 1.0, 4.0, 4.0]
  """
  if devices % nodes:
    raise errors.UserError(f'devices={devices} are not divided by nodes={nodes}; nearest: '
                           f'{errors.closest(devices, range(nodes, devices + nodes, nodes))}')
  node = np.arange(devices) // (devices // nodes)
  return np.where(np.eye(devices) > 0, 0.0, np.where(node[:, None] == node, 1.0, far))


def clusters(load: np.ndarray, devices: int) -> np.ndarray:
  """Returns i32[E], a cluster of E / G experts for each expert: the largest load i[E] of a cluster is least.

  An integer program, exact unless a layer takes longer than SECONDS: then the best that was found.
  """
  experts, size = len(load), len(load) // devices
  if experts % devices or not size:
    near = errors.closest(devices, errors.divisors(experts))
    raise errors.UserError(f'devices={devices} do not divide {experts} experts; nearest: {near}')
  # x[e,g] and the largest load t: sum_g x = 1, sum_e x = E / G, sum_e load x <= t.
  of_expert = sparse.kron(sparse.eye(experts), np.ones((1, devices)))
  of_device = sparse.kron(np.ones((1, experts)), sparse.eye(devices))
  weighed = sparse.kron(load[None].astype(float), sparse.eye(devices))
  column = lambda rows, value: sparse.csr_matrix(np.full((rows, 1), value))
  matrix = sparse.vstack([sparse.hstack([of_expert, column(experts, 0.0)]),
                          sparse.hstack([of_device, column(devices, 0.0)]),
                          sparse.hstack([weighed, column(devices, -1.0)])])
  lower = np.concatenate([np.ones(experts), np.full(devices, size), np.full(devices, -np.inf)])
  upper = np.concatenate([np.ones(experts), np.full(devices, size), np.zeros(devices)])
  count = experts * devices
  found = optimize.milp(
      np.r_[np.zeros(count), 1.0], integrality=np.r_[np.ones(count), 0],
      bounds=optimize.Bounds(np.zeros(count + 1), np.r_[np.ones(count), np.inf]),
      constraints=optimize.LinearConstraint(matrix, lower, upper), options=dict(time_limit=SECONDS))
  start = _greedy(load, devices) if found.x is None else np.argmax(found.x[:-1].reshape(experts, -1), axis=1)
  return _swapped(load, start.astype(np.int32), devices)


def _greedy(load, devices):
  """i[E]: the heaviest expert that is left goes to the lightest cluster that has room."""
  of, total, room = np.zeros(len(load), int), np.zeros(devices), np.full(devices, len(load) // devices)
  for expert in np.argsort(-load, kind='stable'):
    of[expert] = np.argmin(np.where(room > 0, total, np.inf))
    total[of[expert]] += load[expert]
    room[of[expert]] -= 1
  return of


def _swapped(load, of, devices):
  """i32[E]: clusters `of` after swaps of two experts that make the largest load smaller."""
  total = lambda of: np.bincount(of, weights=load, minlength=devices)
  better = True
  while better:
    better = False
    heaviest = int(np.argmax(total(of)))
    for a, b in itertools.product(np.flatnonzero(of == heaviest), np.flatnonzero(of != heaviest)):
      swapped = of.copy()
      swapped[a], swapped[b] = of[b], of[a]
      if total(swapped).max() < total(of).max():
        of, better = swapped, True
        break
  return of


def devices_of(of_cluster: np.ndarray, moves: np.ndarray, distance: np.ndarray) -> np.ndarray:
  """Returns i32[L,E], the device of each expert: clusters i[L,E] on devices, with the least sum of distances.

  Up to EXACT devices by the shortest path over all orders of devices, layer by layer; for more by turns, one
  layer at a time given its neighbours, until nothing gets better.

  Args:
    moves: i[L-1,E,E], of `transitions`; distance: f[G,G].
  """
  number = len(distance)
  member = np.eye(number)[of_cluster]                                # [L, E, G]
  between = np.einsum('lec,lef,lfd->lcd', member[:-1], moves, member[1:])          # [L-1, G, G] of clusters
  chosen = _shortest(between, distance) if number <= EXACT else _turns(between, distance)
  return np.take_along_axis(chosen, of_cluster, axis=1).astype(np.int32)


def _shortest(between, distance):
  """i[L,G], the device of each cluster, exactly."""
  orders = np.array(list(itertools.permutations(range(len(distance)))))            # [P, G]
  cost, back = np.zeros(len(orders)), []
  for counts in between:
    # A step from order p to order q costs sum_cd counts[c,d] distance[p_c,q_d].
    away = distance[orders[:, None, :, None], orders[None, :, None, :]]              # [P, P, G, G]
    step = cost[:, None] + np.einsum('pqcd,cd->pq', away, counts)
    back.append(np.argmin(step, axis=0))
    cost = step.min(axis=0)
  path = [int(np.argmin(cost))]
  for before in reversed(back):
    path.append(int(before[path[-1]]))
  return orders[path[::-1]]


def _turns(between, distance):
  """i[L,G] by an assignment for each layer in turn, from clusters as they are numbered."""
  layers, number = len(between) + 1, len(distance)
  of = np.tile(np.arange(number), (layers, 1))
  value, best = _cost(between, distance, of), np.inf
  while value < best:
    best = value
    for layer in range(layers):
      price = np.zeros((number, number))                             # of a cluster on a device
      if layer:
        price += between[layer - 1].T @ distance[of[layer - 1]]
      if layer + 1 < layers:
        price += between[layer] @ distance[:, of[layer + 1]].T
      of[layer] = optimize.linear_sum_assignment(price)[1]
    value = _cost(between, distance, of)
  return of


def _cost(between, distance, of):
  return sum(np.sum(counts * distance[a][:, b]) for counts, a, b in zip(between, of, of[1:]))


class Measured(NamedTuple):
  """What a placement costs.

  cost:      the sum of transitions times distances.
  crossing:  share of transitions that change the device.
  imbalance: f64[L], largest over mean load of devices.
  loads:     f64[L,G], requests of each device.
  """
  cost: float
  crossing: float
  imbalance: np.ndarray
  loads: np.ndarray


def measured(placement: np.ndarray, load: np.ndarray, moves: np.ndarray, distance: np.ndarray) -> Measured:
  """Returns the Measured of a placement i[L,E] on devices; see `serving.loads` and `transitions`."""
  away = distance[placement[:-1, :, None], placement[1:, None, :]]   # [L-1, E, E]
  changes = placement[:-1, :, None] != placement[1:, None, :]
  total = np.stack([np.bincount(of, weights=counts, minlength=len(distance))
                    for of, counts in zip(placement, load)])         # [L, G]
  return Measured(float(np.sum(moves * away)), float(np.sum(moves * changes) / max(moves.sum(), 1)),
                  total.max(1) / np.maximum(total.mean(1), 1e-12), total)


def place(trace: serving.Trace, distance: np.ndarray) -> np.ndarray:
  """Returns i32[L,E], the device of each expert, by both stages; 0 where a layer has no such expert."""
  devices = len(distance)
  of_cluster = _rows(trace, [clusters(load[:experts], devices)
                             for load, experts in zip(serving.loads(trace), trace.experts)])
  return _rows(trace, devices_of(of_cluster, transitions(trace), distance))


def contiguous(trace: serving.Trace, devices: int) -> np.ndarray:
  """Returns i32[L,E], the usual placement: a layer's first E / G experts on device 0, and so on."""
  return _rows(trace, [np.arange(experts) // (experts // devices) for experts in trace.experts])


def _rows(trace, of_layers):
  """i32[L,E] of a row for each layer; 0 behind the layer's experts."""
  whole = np.zeros((len(trace.experts), trace.num_experts), np.int32)
  for row, of_layer, experts in zip(whole, of_layers, trace.experts):
    row[:experts] = of_layer[:experts]
  return whole
