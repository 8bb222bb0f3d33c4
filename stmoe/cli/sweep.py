"""Trains all runs of a sweep file, several at a time or on SLURM; run again, it fills the gaps.

stmoe sweep capacity_factor --launcher local:jobs=2       experiments/capacity_factor/sweep.py
stmoe sweep MY/sweep.py --list                            the runs and how far they are
stmoe sweep capacity_factor --only 'train_1.0*' --launcher slurm:partition=gpu,time=240
stmoe sweep capacity_factor --launcher print              shell commands, a line for each run
stmoe sweep capacity_factor --report                      the table, figures and verdict of what is done

Every configuration is checked before the first run starts. A run that fails is reported and stops no other
run; an interrupted run goes on. Ctrl-C lets all runs save. --config.a.b=value is for all runs.
"""

import pathlib
import shlex
import sys

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.sweep import live as progress
from stmoe.sweep import origin
from stmoe.sweep import plan


def add_arguments(parser):
  parser.add_argument('file', metavar='FILE', help='a sweep.py, or a folder of experiments/; FILE:ARG')
  parser.add_argument('--launcher', metavar='NAME:FIELD=V', default='local',
                      help=f'{", ".join(lookup.available("launcher"))}; default: local, one run at a time')
  parser.add_argument('--workdir', type=pathlib.Path, help='folder of the runs; default: runs/ and the name')
  parser.add_argument('--only', metavar='PATTERN',
                      help='runs whose name or id is like it, with * and ?, and those that they start from')
  parser.add_argument('--list', action='store_true', help='show the runs and launch nothing')
  parser.add_argument('--report', nargs='?', const='', metavar='DIR',
                      help='launch nothing; write table, figures and verdict to DIR, default: WORKDIR/report')
  parser.set_defaults(overrides=())


def run(args):
  launch = lookup.launcher(args.launcher)
  sweep = plan.load(args.file, args.overrides, args.workdir, args.only)
  if args.list:
    _list(sweep)
    return 0
  origin.record(sweep, args.overrides)   # of an earlier call
  if args.report is not None:
    return _report(sweep, pathlib.Path(args.report or sweep.workdir / 'report'))
  todo = [planned for planned in sweep.runs if not plan.is_done(planned)]
  if not todo:
    print(f'all {len(sweep.runs)} runs of {sweep.question} are done; {_again("--report")}')
    return 0
  board = progress.make(sweep.runs)
  try:
    code = _waves(todo, launch, board)
  finally:
    board.close()
    origin.record(sweep, args.overrides)
  return _end(sweep, board, code)


def _waves(todo, launch, board):
  """Launches runs after those that they start from; returns an exit code."""
  code = 0
  while todo and not code:
    waiting = {planned.id for planned in todo}
    ready = [planned for planned in todo if planned.after not in waiting]
    todo = [planned for planned in todo if planned.after in waiting]
    lost = [planned for planned in ready
            if board.status.get(planned.after) in (progress.FAILED, progress.STOPPED)]
    for planned in lost:
      board.say(f'{planned.id} is not started: it needs {planned.after}')
      board.set(planned, progress.STOPPED)
    able = [planned for planned in ready if planned not in lost]
    code = launch(able, board) if able else 0
  return code


def _end(sweep, board, code):
  """Says how the sweep ended; returns the exit code: 1 if runs failed, or a stopping signal's code."""
  failed = [planned.id for planned in sweep.runs if board.status[planned.id] == progress.FAILED]
  if failed:
    print(f'{len(failed)} of {len(sweep.runs)} runs failed: {" ".join(failed)}', file=sys.stderr)
  if code:
    print(f'stopped; the same command continues: {_again()}', file=sys.stderr)
    return code
  if all(map(plan.is_done, sweep.runs)):
    print(f'all {len(sweep.runs)} runs of {sweep.question} are done; {_again("--report")}')
  return 1 if failed else 0


def _again(more=''):
  """The command line that was typed, as it can be typed again, with `more`."""
  words = sys.argv[1:] if sys.argv[1:2] == ['sweep'] else ['sweep', '...']
  return ' '.join(['stmoe', *map(shlex.quote, words), *filter(None, [more])])


def _list(sweep):
  """Prints a row for each run."""
  from stmoe.analysis import table
  overrides = [set(planned.overrides) for planned in sweep.runs]
  common = set.intersection(*overrides) if len(overrides) > 1 else set()
  rows = []
  for planned in sweep.runs:
    step = progress.step(planned)
    state = 'done' if plan.is_done(planned) else f'step {step:,}' if step else 'waiting'
    rows.append([planned.id, planned.experiment, f'{planned.steps:,}', state,
                 ' '.join(text for text in planned.overrides if text not in common)])
  print(table.plain(['run', 'experiment', 'steps', 'state', 'differs in'], rows))


def _report(sweep, folder):
  """Writes the tables, and what the report.py beside the sweep says; returns 1 if there is nothing yet."""
  from stmoe.sweep import collect
  results = collect.results(sweep.runs)
  if not results:
    raise errors.UserError(f'no run of {sweep.question} in {sweep.workdir} is done yet; without --report '
                           'they are trained')
  for path in collect.write(folder, results, _again()):
    print(path)
  if len(results) < len(sweep.runs):
    print(f'note: {len(results)} of {len(sweep.runs)} runs are done; the rest is not in the table')
  file = sweep.file.with_name('report.py')
  if file.is_file():
    from stmoe.sweep import conclude
    print('\n'.join(conclude.write(folder, experiment.module_of(file), results, len(sweep.runs))))
  return 0
