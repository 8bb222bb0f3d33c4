"""Training steps of several experiments in turn, over those of the first: medians of paired ratios.

  python -m stmoe.experiments.kernels.steps lm/quickstart:method=dense lm/quickstart:method=switch

An override (--config.model.scan_layers=False) is of all. Words behind a name, 'NAME model.remat=none', are of
that experiment alone. The batch is the first of the experiment's data.
"""

import argparse
import statistics
import time

from stmoe.bench import held
from stmoe.runs import directory as rundir
from stmoe.train import loop

STEPS = 3                                # of a round


def seconds(step: held.Step) -> float:
  """Returns the seconds of a step, the mean of STEPS steps."""
  with step.mesh():
    start = time.perf_counter()
    for _ in range(STEPS):
      step.run()
    return (time.perf_counter() - start) / STEPS


def measure(configs: list, rounds: int) -> list[list[float]]:
  """Returns seconds [round][configuration] of a step; the first round, which warms up, is left out."""
  running = [held.Step(cfg) for cfg in configs]
  return [[seconds(step) for step in running] for _ in range(rounds + 1)][1:]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('names', nargs='+', metavar='NAME', help='experiments; all are over the first')
  parser.add_argument('--rounds', type=int, default=9)
  args, overrides = parser.parse_known_args()
  loop.keep_compilations()
  configs = [rundir.named(name, [*overrides, *own])[0] for name, *own in map(str.split, args.names)]
  times = measure(configs, args.rounds)
  for i, name in enumerate(args.names):
    own, ratios = [row[i] for row in times], sorted(row[i] / row[0] for row in times)
    print(f'{name}: {1e3 * statistics.median(own):.1f} ms, over the first {statistics.median(ratios):.3f} '
          f'({ratios[0]:.3f} to {ratios[-1]:.3f})')


if __name__ == '__main__':
  main()
