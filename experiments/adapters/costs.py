"""What a step of every tuning costs over one of full fine-tuning: parameters, state, memory, processor time.

  taskset -c 0 python -m stmoe.experiments.adapters.costs runs/adapters --json OUT

RUNS is the folder of `stmoe sweep adapters`: the configurations are those of its runs of seed 0. Steps run
in turn, in one process on one core, and a ratio is of two steps of the same round. So a machine that others
use, too, disturbs the ratio little. Memory is what the compiler plans: arguments, results and temporaries.
"""

import argparse
import pathlib
import statistics
import time

import jax

from stmoe import files
from stmoe.aot import program
from stmoe.data import batches as pipeline
from stmoe.experiments.adapters import report
from stmoe.runs import directory as rundir
from stmoe.sweep import plan
from stmoe.train import check
from stmoe.train import state as states
from stmoe.train import step as steps

COLUMNS = ('parameters', 'trained', 'optimizer, KiB', 'peak, MiB', 'over full', 'ms a step', 'over full')


class Tuning:
  """A compiled training step with its state; `facts` are numbers that need no run."""

  def __init__(self, cfg):
    self.cfg = cfg
    with self._mesh() as mesh:
      blueprint = states.blueprint(cfg, mesh)
      self.state, step = states.init(cfg, blueprint), steps.make(cfg, blueprint)
      self.batch = check.place(next(pipeline.train_iterator(cfg)), mesh)
      self.compiled = step.lower(self.state, self.batch).compile()
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    params = blueprint.shapes['params']
    self.facts = dict(
        parameters=count(params), trained=count(blueprint.trainable(params)),
        optimizer_bytes=sum(x.nbytes for x in jax.tree.leaves(self.state['opt_state'])),
        peak_bytes=program.memory(self.compiled)['peak'])

  def step(self):
    """Returns the processor milliseconds of one step, of all threads of this process."""
    with self._mesh():
      start = time.process_time()
      self.state, told = self.compiled(self.state, self.batch)
      jax.block_until_ready((self.state, told))
      return 1e3 * (time.process_time() - start)

  def _mesh(self):
    return states.on_mesh(self.cfg.mesh, jax.devices()[:1])


def measure(cfgs, rounds):
  """Returns dict method -> facts of `Tuning`, `step_ms` and `ratio`: medians of rounds after the first two.

  cfgs: dict method -> configuration; the first method is what others are over.
  """
  tunings = {name: Tuning(cfg) for name, cfg in cfgs.items()}
  rows = [{name: tuning.step() for name, tuning in tunings.items()} for _ in range(rounds + 2)][2:]
  first = next(iter(tunings))
  return {name: tuning.facts | dict(
      step_ms=statistics.median(row[name] for row in rows),
      ratio=statistics.median(row[name] / row[first] for row in rows)) for name, tuning in tunings.items()}


def lines(measured):
  """Yields the lines of a Markdown table of `measure`'s result."""
  full = next(iter(measured.values()))
  yield f'| method | {" | ".join(COLUMNS)} |'
  yield '|' + '---|' * (len(COLUMNS) + 1)
  for name, one in measured.items():
    yield (f'| {name} | {one["parameters"]:,} | {one["trained"]:,} | {one["optimizer_bytes"] / 2**10:,.0f} '
           f'| {one["peak_bytes"] / 2**20:.1f} | {one["peak_bytes"] / full["peak_bytes"]:.2f} '
           f'| {one["step_ms"]:.0f} | {one["ratio"]:.2f} |')


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('runs', type=pathlib.Path, help='the folder of the sweep, runs/adapters')
  parser.add_argument('--rounds', type=int, default=21)
  parser.add_argument('--json', type=pathlib.Path, metavar='OUT')
  args = parser.parse_args()
  first = [run for run in plan.load('adapters', workdir=args.runs).runs if 'seed=0' in run.overrides]
  folders = {run.name: run.workdir for run in first}
  measured = measure({name: rundir.load(folders[name]) for name in report.METHODS}, args.rounds)
  print('\n'.join(lines(measured)))
  if args.json:
    files.write_json(args.json, measured)


if __name__ == '__main__':
  main()
