"""How many tokens the data pipeline makes in a second, by itself."""

import multiprocessing
import time

from stmoe.analysis import flops
from stmoe.data import batches as pipeline
from stmoe.runs import directory as rundir


def measure(name: str, overrides: tuple[str, ...] = (), workers: int = 1, seconds: float = 5.0) -> float:
  """Returns tokens per second of the training batches of experiment `name`, padding counted.

  Every worker is a process that makes its slice of all batches, as the processes of a job do. Nothing else
  runs beside them.
  """
  context = multiprocessing.get_context('spawn')
  with context.Pool(workers) as pool:
    jobs = [(name, overrides, worker, workers, seconds) for worker in range(workers)]
    return sum(pool.starmap(_rate, jobs, chunksize=1))


def _rate(name, overrides, worker, workers, seconds):
  """Tokens per second of one worker, from its first batch on."""
  cfg, _ = rundir.named(name, overrides)
  batches = pipeline.train_iterator(cfg, worker, workers)
  rows, number = len(next(iter(next(batches).values()))), 0
  began = time.monotonic()
  while time.monotonic() < began + seconds or not number:
    next(batches)
    number += 1
  taken = time.monotonic() - began
  batches.close()
  return number * rows * flops.lengths(cfg)['decoder'] / taken
