"""What serving would cost where experts do not fit: caches, schedules and placements, simulated on a trace.

A trace is i32[steps,L,k]: the experts that each of L layers chose for a token in every step, -1 for none.
Nothing here runs a model. A recording of `stmoe record` gives a trace: texts are read token by token.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Trace(NamedTuple):
  """chosen i32[steps,L,k], -1 for none, in the order in which experts are asked for; E of the largest layer.

  sizes: of each layer; () = all layers have E.
  """
  chosen: np.ndarray
  num_experts: int
  sizes: tuple[int, ...] = ()

  @property
  def experts(self) -> np.ndarray:
    """i[L]: how many experts each layer has."""
    return np.array(self.sizes or [self.num_experts] * self.chosen.shape[1])

  @property
  def described(self) -> str:
    """Its layers and experts, in words.

    >>> Trace(np.zeros((9, 2, 1), np.int32), 8, (4, 8)).described
    '2 layers of 4 to 8 experts'
    """
    fewest = self.experts.min()
    of = f'{fewest} to {self.num_experts}' if fewest < self.num_experts else self.num_experts
    return f'{len(self.experts)} layers of {of} experts'


def requests(chosen: np.ndarray) -> Iterator[tuple[int, int]]:
  """Yields (step, expert) of a layer's chosen experts i32[steps,k], in order.

  >>> list(requests(np.array([[3, -1], [1, 3]])))
  [(0, 3), (1, 1), (1, 3)]
  """
  for step, row in enumerate(chosen):
    yield from ((step, int(expert)) for expert in row if expert >= 0)


def recorded(routes: np.ndarray, real: np.ndarray, experts: Sequence[int]) -> Trace:
  """Returns the Trace of a recording's routes i[N,T,L,n], row after row, token after token.

  Choices of virtual experts, which have no weights to be held or moved, are none.

  Args:
    real:    bool[N,T], tokens that are no padding.
    experts: E of each layer, without virtual experts.

  >>> recorded(np.array([[[[0, 3]]]]), np.array([[True]]), [2])
  Trace(chosen=array([[[ 0, -1]]], dtype=int32), num_experts=2, sizes=(2,))
  """
  chosen = np.asarray(routes, np.int32)[np.asarray(real, bool)]      # [steps, L, n]
  held = chosen < np.array(experts)[:, None]
  return Trace(np.where(held, chosen, np.int32(-1)), max(experts), tuple(experts))


def loads(trace: Trace) -> np.ndarray:
  """Returns i64[L,E], the requests of each expert."""
  return np.stack([np.bincount(layer[layer >= 0], minlength=trace.num_experts)
                   for layer in np.moveaxis(trace.chosen, 1, 0)])


def repeats(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
  """Returns (f64[L] share of requests for an expert of the step before; f64[L] the same by chance).

  By chance: an expert's requests are as many as in the trace, and in any order.
  """
  now, before = trace.chosen[1:], trace.chosen[:-1]
  there = now >= 0
  again = (now[..., :, None] == before[..., None, :]).any(-1) & there              # [steps-1, L, k]
  share = again.sum((0, 2)) / np.maximum(there.sum((0, 2)), 1)
  count = loads(trace)                                               # [L, E]
  present = count / len(trace.chosen)
  return share, (count * present).sum(1) / np.maximum(count.sum(1), 1)
