"""Caches of experts: which experts a layer's slots hold, and how often the one that is asked for is there.

Textbook policies. Every layer has a cache of its own, empty at the start; experts are asked for one by one.
"""

from typing import NamedTuple

import numpy as np

from stmoe import errors
from stmoe.analysis import serving

NEVER = np.iinfo(np.int64).max


class Slots(NamedTuple):
  """A layer's cache at a request.

  order: resident experts, the least recently asked for first.
  asked: i64[E] requests until now, also while an expert was absent.
  next:  i64[E], the place in the layer's requests at which an expert is next asked for, or NEVER.
  """
  order: list
  asked: np.ndarray
  next: np.ndarray


def lru(slots: Slots) -> int:
  """Returns the resident expert whose last request is the oldest."""
  return slots.order[0]


def lfu(slots: Slots) -> int:
  """Returns the resident expert with the fewest requests; of equal ones the oldest."""
  return min(slots.order, key=lambda expert: slots.asked[expert])


def belady(slots: Slots) -> int:
  """Returns the resident expert that is needed last: the best that any policy can do, with the future known.

  Of several that are never needed again, the lowest.
  """
  return min(slots.order, key=lambda expert: (-slots.next[expert], expert))


POLICIES = dict(lru=lru, lfu=lfu, belady=belady)


class Replay(NamedTuple):
  """hits i32[steps,L], requests that found their expert; resident i8[steps,L,E], after each step."""
  hits: np.ndarray
  resident: np.ndarray


def replay(trace: serving.Trace, policy: str, slots: int) -> Replay:
  """Returns the Replay of a trace with `slots` experts a layer; the policy says who leaves a full cache.

  >>> found = replay(serving.Trace(np.array([[[0]], [[1]], [[0]], [[2]], [[0]]]), 3), 'lru', 2)
  >>> found.hits.ravel().tolist()
  [0, 0, 1, 0, 1]
  """
  if policy not in POLICIES:
    raise errors.UserError(f'no policy is called {policy!r}{errors.nearest(policy, POLICIES)} (there are: '
                           f'{", ".join(POLICIES)})')
  if slots < 1:
    raise errors.UserError(f'slots={slots}: a cache holds at least one expert; nearest: 1')
  steps, layers, _ = trace.chosen.shape
  hits = np.zeros((steps, layers), np.int32)
  resident = np.zeros((steps, layers, trace.num_experts), np.int8)
  for layer in range(layers):
    _layer(trace.chosen[:, layer], POLICIES[policy], slots, hits[:, layer], resident[:, layer])
  return Replay(hits, resident)


def _layer(chosen, leaves, room, hits, resident):
  """Fills hits [steps] and resident [steps,E] of a layer with chosen experts [steps,k]."""
  asked = list(serving.requests(chosen))
  after = _next([expert for _, expert in asked])
  number = resident.shape[1]
  slots = Slots([], np.zeros(number, np.int64), np.full(number, NEVER))
  step = 0
  for (at, expert), following in zip(asked, after):
    while step < at:                                                 # steps that are over
      resident[step, slots.order] = 1
      step += 1
    slots.asked[expert] += 1
    if expert in slots.order:
      hits[at] += 1
      slots.order.remove(expert)
    elif len(slots.order) == room:
      slots.order.remove(leaves(slots))
    slots.order.append(expert)
    slots.next[expert] = following
  resident[step:, slots.order] = 1


def _next(experts):
  """For each of a list of requests the place of the next one for the same expert, or NEVER."""
  seen, after = {}, []
  for place in range(len(experts) - 1, -1, -1):
    after.append(seen.get(experts[place], NEVER))
    seen[experts[place]] = place
  return after[::-1]


def most_used(trace: serving.Trace, slots: int) -> Replay:
  """Returns the Replay where every layer holds, from the start, the `slots` experts of most requests."""
  steps, layers, _ = trace.chosen.shape
  resident = np.zeros((steps, layers, trace.num_experts), np.int8)
  for layer, count in enumerate(serving.loads(trace)):
    resident[:, layer, np.argsort(-count, kind='stable')[:min(slots, trace.experts[layer])]] = 1
  there = np.take_along_axis(resident, np.maximum(trace.chosen, 0), axis=2)        # [steps, L, k]
  return Replay(np.asarray(np.sum(there * (trace.chosen >= 0), axis=2), np.int32), resident)
