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
from stmoe.bench import held
from stmoe.experiments.adapters import report
from stmoe.runs import directory as rundir
from stmoe.sweep import plan

COLUMNS = ('parameters', 'trained', 'optimizer, KiB', 'peak, MiB', 'over full', 'ms a step', 'over full')


def facts(step: held.Step) -> dict:
  """Returns the numbers of a step that need no run."""
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  params = step.plan.shapes['params']
  return dict(parameters=count(params), trained=count(step.plan.trainable(params)),
              optimizer_bytes=sum(x.nbytes for x in jax.tree.leaves(step.state['opt_state'])),
              peak_bytes=program.memory(step.compiled)['peak'])


def milliseconds(step: held.Step) -> float:
  """Returns the processor milliseconds of one step, of all threads of this process."""
  with step.mesh():
    start = time.process_time()
    step.run()
    return 1e3 * (time.process_time() - start)


def measure(cfgs, rounds):
  """Returns dict method -> `facts`, `step_ms` and `ratio`: medians of rounds after the first two.

  cfgs: dict method -> configuration; the first method is what others are over.
  """
  running = {name: held.Step(cfg) for name, cfg in cfgs.items()}
  rows = [{name: milliseconds(step) for name, step in running.items()} for _ in range(rounds + 2)][2:]
  first = next(iter(running))
  return {name: facts(step) | dict(
      step_ms=statistics.median(row[name] for row in rows),
      ratio=statistics.median(row[name] / row[first] for row in rows)) for name, step in running.items()}


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
