"""Ranks of edges within their expert, by one-hot counts and by a sort: which is faster for what list?

  python -m stmoe.experiments.kernels.counting
"""

import statistics
import time

import jax
import numpy as np

from stmoe.core.units import counting

EDGES, IDS = (2048, 8192, 32768, 131072), (9, 17, 33, 65)


def milliseconds(edges: int, ids: int, rounds: int = 7) -> tuple[float, float]:
  """Returns ms (one-hot, sort) of the ranks of a list i32[1,edges] of `ids` ids, medians."""
  expert = jax.device_put(np.random.default_rng(0).integers(0, ids, (1, edges), np.int32))
  return (_median(lambda e: counting.by_one_hot(e, ids), expert, rounds),
          _median(counting.by_sort, expert, rounds))


def _median(f, expert, rounds):
  f, times = jax.jit(f).lower(expert).compile(), []
  for _ in range(rounds + 1):                                        # the first warms up
    start = time.perf_counter()
    f(expert).block_until_ready()
    times.append(1e3 * (time.perf_counter() - start))
  return statistics.median(times[1:])


if __name__ == '__main__':
  for edges in EDGES:
    for ids in IDS:
      one_hot, by_sort = milliseconds(edges, ids)
      print(f'{edges:7} edges, {ids:2} ids: one-hot {one_hot:.2f} ms, sort {by_sort:.2f} ms')
