"""HybriMoE: experts on a GPU or a CPU by schedule, a cache by scores, prefetching (arXiv:2504.05897).

All weights lie in the CPU's memory; the GPU holds a few experts of each layer. All of this is of decoding, a
token a step. In prefill the release sends every expert to the GPU.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from stmoe.analysis import serving


@dataclasses.dataclass(frozen=True)
class Times:
  """What experts cost, in one unit of time: of an expert, of a token, and once for each device and layer.

  The defaults are those of the release, of its authors' machine. Its CPU takes 1.0 a token for DeepSeek, 0.2
  for Mixtral and 0.8 for Qwen2.
  """
  gpu: float = 0.5
  gpu_token: float = 0.0
  gpu_once: float = 0.0
  cpu: float = 0.0
  cpu_token: float = 1.0
  cpu_once: float = 0.79
  move: float = 0.41791011235117914


class Schedule(NamedTuple):
  """Experts of a layer in the order in which the devices run them, when these are done, time of transfers."""
  gpu: list
  cpu: list
  gpu_done: float
  cpu_done: float
  moved: float

  @property
  def time(self) -> float:
    """The time of the layer."""
    return max(self.gpu_done, self.cpu_done)


def schedule(resident: list, absent: list, tokens: dict, times: Times = Times(),
             cpu: bool = True) -> Schedule:
  """Returns the Schedule of a layer's chosen experts.

  Residents by falling number of tokens, then absent ones, are one list. The GPU would take its front and the
  CPU its back; the one that would be done earlier does. An absent expert waits on the GPU for its transfer.

  Args:
    resident, absent: experts, ties in this order; tokens: expert -> its tokens.
    cpu: whether the CPU computes at all.

  >>> schedule([7], [1], {7: 1, 1: 1}).gpu
  [7, 1]
  """
  fewest_last = lambda experts: sorted(experts, key=lambda expert: -tokens[expert])
  waiting, gone = fewest_last(resident) + fewest_last(absent), set(absent)
  gpu: list[int] = []
  on_cpu: list[int] = []
  gpu_done, cpu_done, moved = 0.0, 0.0, 0.0
  while waiting:
    front, back = waiting[0], waiting[-1]
    wait = max(0.0, moved + times.move - gpu_done) if front in gone else 0.0
    cost = wait + times.gpu + times.gpu_token * tokens[front] + (0.0 if gpu else times.gpu_once)
    other = times.cpu + times.cpu_token * tokens[back] + (0.0 if on_cpu else times.cpu_once)
    if not cpu or gpu_done + cost <= cpu_done + other:
      gpu.append(waiting.pop(0))
      gpu_done, moved = gpu_done + cost, moved + (times.move if front in gone else 0.0)
    else:
      on_cpu.append(waiting.pop())
      cpu_done += other
  return Schedule(gpu, on_cpu, gpu_done, cpu_done, moved)


def scored(scores: np.ndarray, probs: np.ndarray, top: int, alpha: float = 0.5) -> np.ndarray:
  """Returns f[E], the priorities of a layer's experts after a token.

  alpha p + (1 - alpha) s of the `top` most probable experts, (1 - alpha) s of other experts.

  Args:
    scores: f[E] before; probs: f[E] of the router for the token, of several the first.
  Differs: the release gives these experts one another's probabilities, see `scored_as_released`.

  >>> scored(np.array([0.2, 0.4]), np.array([0.1, 0.9]), 1).tolist()
  [0.1, 0.65]
  """
  best = np.argsort(-probs, kind='stable')[:top]
  after = (1 - alpha) * scores
  after[best] += alpha * probs[best]
  return after


def scored_as_released(scores: np.ndarray, probs: np.ndarray, top: int, alpha: float = 0.5) -> np.ndarray:
  """Returns f[E] as `scored`, but the i-th best probability goes to the i-th of these experts by number."""
  best = np.argsort(-probs, kind='stable')[:top]
  after = (1 - alpha) * scores
  after[np.sort(best)] += alpha * probs[best]
  return after


def evicted(order: list, scores: np.ndarray) -> int:
  """Returns the resident expert of least score f[E], of equal ones the first in `order`.

  >>> evicted([2, 0, 1], np.array([0.5, 0.7, 0.5]))
  2
  """
  return min(order, key=lambda expert: scores[expert])


def greatest(scores: np.ndarray, number: int) -> list:
  """Returns the `number` experts of greatest score f[E], the greatest first."""
  return np.argsort(-scores, kind='stable')[:number].tolist()


class Cache:
  """Residency of L layers: `order`, per layer the experts on the GPU, least recently used or loaded first.

  hits, misses: of experts that ran on the GPU. moves: all experts that were loaded, prefetched ones too.
  """

  def __init__(self, scores: np.ndarray, slots: int, resident: list | None = None):
    """scores: f[L,E] at first; resident: per layer the experts that are there at first."""
    self.scores = np.array(scores, np.float64)
    self.slots = slots
    self.order = [list(experts) for experts in resident or [[]] * len(scores)]
    self.hits, self.misses, self.moves = 0, 0, 0

  def load(self, layer: int, expert: int) -> None:
    """Puts an expert into a layer; where the layer is full, the expert of least score leaves."""
    order = self.order[layer]
    if len(order) >= self.slots:
      order.remove(evicted(order, self.scores[layer]))
    order.append(expert)
    self.moves += 1

  def step(self, layer: int, chosen: list, times: Times = Times(), prefetch: int = 0,
           wanted: np.ndarray | None = None) -> Schedule:
    """Returns the Schedule of the experts that a token chose in a layer, and moves the cache.

    Args:
      prefetch: experts of the next layer with the greatest scores that are loaded if they are absent,
        where the GPU had anything to do.
      wanted: f[E], a prediction of the next layer's experts to go by instead; 0 = not wanted at all.
    """
    order = self.order[layer]
    resident = [expert for expert in chosen if expert in order]
    absent = [expert for expert in chosen if expert not in order]
    done = schedule(resident, absent, dict.fromkeys(chosen, 1), times)
    for expert in done.gpu:
      if expert in order:
        order.remove(expert)
        order.append(expert)
        self.hits += 1
      else:
        self.load(layer, expert)
        self.misses += 1
    if done.gpu and prefetch and layer + 1 < len(self.order):
      foreseen = greatest(self.scores[layer + 1] if wanted is None else wanted, prefetch)
      self.prefetch(layer + 1, [expert for expert in foreseen if wanted is None or wanted[expert] > 0])
    return done

  def prefetch(self, layer: int, experts: list) -> None:
    """Loads those of some experts of a layer that are absent."""
    for expert in experts:
      if expert not in self.order[layer]:
        self.load(layer, expert)


class Decoded(NamedTuple):
  """What a trace cost: hits of all chosen experts and of those on the GPU, time f64[steps], loads a step."""
  hits: float
  gpu_hits: float
  time: np.ndarray
  moves: float


def decode(trace: serving.Trace, slots: int, times: Times = Times(), prefetch: int = 0, alpha: float = 0.5,
           probs: np.ndarray | None = None, wanted: np.ndarray | None = None) -> Decoded:
  """Returns the Decoded of a trace; numbers of hits and moves are of a request and of a step.

  Args:
    probs: f[steps,L,E] of the routers; None: each of the k experts that are chosen has 1 / k. Recordings
      hold the choices alone.
    wanted: f[steps,L,E], a prediction by which experts are prefetched, see `prefetch`; None: the scores.
  """
  steps, layers, k = trace.chosen.shape
  cache = Cache(np.zeros((layers, trace.num_experts)), slots)
  time, found, asked = np.zeros(steps), 0, 0
  for step in range(steps):
    for layer in range(layers):
      chosen = [int(expert) for expert in trace.chosen[step, layer] if expert >= 0]
      p = _chosen(chosen, trace.num_experts) if probs is None else probs[step, layer]
      cache.scores[layer] = scored(cache.scores[layer], p, 2 * k, alpha)
      found += sum(expert in cache.order[layer] for expert in chosen)
      asked += len(chosen)
      later = wanted[step, layer + 1] if wanted is not None and layer + 1 < layers else None
      ahead = min(prefetch, trace.experts[layer + 1]) if layer + 1 < layers else 0
      time[step] += cache.step(layer, chosen, times, ahead, later).time
  on_gpu = cache.hits / max(cache.hits + cache.misses, 1)
  return Decoded(found / max(asked, 1), on_gpu, time, cache.moves / steps)


def _chosen(experts, number):
  """F64[E], equal probabilities of `experts`."""
  p = np.zeros(number)
  p[experts] = 1 / max(len(experts), 1)
  return p
