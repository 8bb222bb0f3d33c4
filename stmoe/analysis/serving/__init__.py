"""What serving would cost where experts do not fit: caches, schedules and placements, simulated on a trace.

A trace is i32[steps,L,k]: the experts that each of L layers chose for a token in every step, -1 for none.
Nothing here runs a model. A recording of `stmoe record` gives a trace: texts are read token by token.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Trace(NamedTuple):
  """chosen i32[steps,L,k], -1 for none, in the order in which experts are asked for; E of each layer."""
  chosen: np.ndarray
  num_experts: int


def requests(chosen: np.ndarray) -> Iterator[tuple[int, int]]:
  """Yields (step, expert) of a layer's chosen experts i32[steps,k], in order.

  >>> list(requests(np.array([[3, -1], [1, 3]])))
  [(0, 3), (1, 1), (1, 3)]
  """
  for step, row in enumerate(chosen):
    yield from ((step, int(expert)) for expert in row if expert >= 0)


def recorded(routes: np.ndarray, real: np.ndarray, num_experts: int) -> Trace:
  """Returns the Trace of a recording's routes i[N,T,L,n], row after row, token after token.

  real: bool[N,T], tokens that are no padding.
  """
  return Trace(np.asarray(routes, np.int32)[np.asarray(real, bool)], num_experts)


def repeats(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
  """Returns (f64[L] share of requests for an expert of the step before; f64[L] the same by chance).

  By chance: an expert's requests are as many as in the trace, and in any order.
  """
  now, before = trace.chosen[1:], trace.chosen[:-1]
  there = now >= 0
  again = (now[..., :, None] == before[..., None, :]).any(-1) & there              # [steps-1, L, k]
  share = again.sum((0, 2)) / np.maximum(there.sum((0, 2)), 1)
  count = np.stack([np.bincount(layer[layer >= 0], minlength=trace.num_experts)
                    for layer in np.moveaxis(trace.chosen, 1, 0)])                   # [L, E]
  present = count / len(trace.chosen)
  return share, (count * present).sum(1) / np.maximum(count.sum(1), 1)
