"""Training steps of several experiments in turn, over those of the first: medians of paired ratios.

  python -m stmoe.experiments.kernels.steps lm/quickstart:method=dense lm/quickstart:method=switch

An override (--config.model.scan_layers=False) is of all. The batch is the first of the experiment's data.
"""

import argparse
import statistics
import time

import jax

from stmoe.data import batches as pipeline
from stmoe.runs import directory as rundir
from stmoe.train import check
from stmoe.train import loop
from stmoe.train import state as states
from stmoe.train import step as steps

STEPS = 3                                # of a round


class Running:
  """A compiled training step of configuration `cfg` with its state, on one device."""

  def __init__(self, cfg):
    self.cfg = cfg
    with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
      plan = states.blueprint(cfg, mesh)
      self.state, do_step = states.init(cfg, plan), steps.make(cfg, plan)
      self.batch = check.place(next(pipeline.train_iterator(cfg)), mesh)
      self.compiled = do_step.lower(self.state, self.batch).compile()

  def seconds(self) -> float:
    """Returns the seconds of a step, the mean of STEPS steps."""
    with states.on_mesh(self.cfg.mesh, jax.devices()[:1]):
      start = time.perf_counter()
      for _ in range(STEPS):
        self.state, _ = self.compiled(self.state, self.batch)
        jax.block_until_ready(self.state)
      return (time.perf_counter() - start) / STEPS


def measure(configs: list, rounds: int) -> list[list[float]]:
  """Returns seconds [round][configuration] of a step; the first round, which warms up, is left out."""
  running = [Running(cfg) for cfg in configs]
  return [[each.seconds() for each in running] for _ in range(rounds + 1)][1:]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('names', nargs='+', metavar='NAME', help='experiments; all are over the first')
  parser.add_argument('--rounds', type=int, default=9)
  args, overrides = parser.parse_known_args()
  loop.keep_compilations()
  times = measure([rundir.named(name, overrides)[0] for name in args.names], args.rounds)
  for i, name in enumerate(args.names):
    own, ratios = [row[i] for row in times], sorted(row[i] / row[0] for row in times)
    print(f'{name}: {1e3 * statistics.median(own):.1f} ms, over the first {statistics.median(ratios):.3f} '
          f'({ratios[0]:.3f} to {ratios[-1]:.3f})')


if __name__ == '__main__':
  main()
