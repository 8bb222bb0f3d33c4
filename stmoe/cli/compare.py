"""Trains several experiments at equal active FLOPs or equal time, and tabulates, plots and reports them.

stmoe compare lm/quickstart                               the methods that the file names in METHODS
stmoe compare lm/dense lm/switch --seeds 0,1,2            the experiments as they are, three seeds
stmoe compare lm/stdlib:smoke --methods dense,switch      NAME with method=dense, then method=switch
The first run keeps its steps; the other runs get as many as cost the same. After an interruption, the same
command continues; when all is finished, it shows the result at once. The same command with more methods
keeps the runs that are there.
"""

import pathlib
import sys

from stmoe import errors
from stmoe import experiment
from stmoe import files
from stmoe import plugins
from stmoe import ranges
from stmoe.runs import directory as rundir
from stmoe.sweep import compare

# A calibration run for equal time: long enough to leave compilation and first steps behind.
CALIBRATION_STEPS = 30
CALIBRATION = (f'train.steps={CALIBRATION_STEPS}', 'train.log_every=10', 'eval.every=1000000',
               'eval.batches=1', 'checkpoint.every=1000000')

BY = 'flops', 'time'
LONG = 80                                # a command from which on what it is for stands right behind it

COMPUTES = True
TRAINS = True


def add_arguments(parser):
  parser.add_argument('names', nargs='+', metavar='NAME',
                      help='an experiment, NAME[:argument], or a run directory')
  parser.add_argument('--methods', metavar='A,B', help='give each NAME the argument method=A, then method=B')
  parser.add_argument('--seeds', metavar='0,1', help='seeds of every variant; default: that of the file')
  parser.add_argument('--by', choices=BY, default=BY[0],
                      help='what all runs have the same of: active training FLOPs (default) or training time')
  parser.add_argument('--workdir', type=pathlib.Path, help='default: runs/ and the name of the experiment')
  parser.set_defaults(overrides=[])


def run(args):
  variants = compare.expand(args.names, _arguments(args))
  request = dict(experiments=[v.experiment for v in variants], seeds=_seeds(args), by=args.by,
                 overrides=list(args.overrides))
  workdir = args.workdir or compare.default_workdir(args.names, request)
  configs = [rundir.named(v.experiment, args.overrides)[0] for v in variants]
  jobs = compare.stored(workdir, request)
  costs = _costs(configs) if jobs is None else None                  # a mistake leaves no directory behind
  with rundir.own(workdir) as workdir:
    return _run(args, variants, configs, request, workdir, costs)


def _run(args, variants, configs, request, workdir, costs):
  """Does what is left of a comparison, in a folder that this process owns."""
  jobs = compare.stored(workdir, request)
  if jobs is None:
    jobs = _plan(variants, configs, request, workdir, costs)
    compare.store(workdir, request, jobs)
  was_done = all(compare.is_done(workdir, job) for job in jobs) and (workdir / 'report.html').is_file()
  train = lambda job, folder: _train(job.experiment, [*args.overrides, *job.overrides], folder)
  code = compare.run(workdir, jobs, train, _say)
  if code:
    return code
  if was_done:
    _say(f'{workdir} is finished already')
  _finish(workdir, jobs, args.names, fresh=not was_done)
  proposed = following(asked(args), workdir, jobs)
  width = max(len(command) for command in proposed if len(command) <= LONG)
  print('\nNext\n' + '\n'.join(f'  {command:{width}}  {why}' for command, why in proposed.items()))


def asked(args):
  """Returns the words of a command line that say which comparison this is, but for its seeds and folder."""
  methods = [] if args.methods is None else ['--methods', args.methods]
  by = [] if args.by == BY[0] else ['--by', args.by]
  return [*args.names, *methods, *by, *args.overrides]


def _arguments(args):
  """The arguments that every name is given: of --methods, or METHODS of the single file named."""
  if args.methods:
    return [f'method={method}' for method in args.methods.split(',')]
  if len(args.names) > 1 or 'method=' in args.names[0] or rundir.is_run(args.names[0]):
    return []
  _, module = experiment.find_module(experiment.split(args.names[0])[0])
  return getattr(module, 'METHODS', [])


def _seeds(args):
  if args.seeds is None:
    return None
  seeds = [ranges.Seed.typed('--seeds', word) for word in args.seeds.split(',')]
  if len(set(seeds)) < len(seeds):
    raise errors.UserError(f'--seeds {args.seeds}: give different whole numbers, for example 0,1,2')
  return seeds


def _costs(configs):
  """What each configuration costs, by abstract evaluation."""
  from stmoe.analysis import table
  return [table.cost(config) for config in configs]


def _plan(variants, configs, request, workdir, costs):
  """The Jobs, their steps by the budget."""
  per_step = [cost['flops_per_step'] for cost in costs]
  if request['by'] == 'time':
    per_step = [_seconds_per_step(v, request['overrides'], workdir / 'calibration') for v in variants]
  steps = compare.equal_budget(configs[0].train.steps, per_step)
  seeds = request['seeds'] or [configs[0].seed]
  return compare.plan(variants, seeds, costs, steps)


def _seconds_per_step(variant, overrides, folder):
  """Seconds of one step after the first ten, measured in a short run of its own."""
  from stmoe.runs import read as runs
  folder = folder / variant.label.replace('/', '_')
  _say(f'measuring {variant.label}: {CALIBRATION_STEPS} steps')
  code = _train(variant.experiment, [*overrides, *CALIBRATION], folder)
  if code:
    raise SystemExit(code)
  steps, seconds = runs.read(folder).series('time')
  return (seconds[-1] - seconds[0]) / (steps[-1] - steps[0])


def _train(name, overrides, folder):
  """Trains experiment `name` in run directory `folder`, or goes on training; returns the exit code."""
  from stmoe.train import loop
  config, name = rundir.named(name, overrides)
  return loop.train(config, folder, name)


def _finish(workdir, jobs, names, fresh):
  """Prints the table, and writes results, figures and report if they are not there."""
  from stmoe.analysis import baselines
  runs, labels, costs = compare.read_runs(workdir, jobs, _say)
  grouped = compare.results(runs, labels, costs)
  if fresh:
    compare.store_results(workdir, grouped)
    _write_pages(workdir, runs, labels, costs, ', '.join(names))
  print_table(grouped, baselines.common(runs))
  print(f'\nFigures  {workdir}/plots/*.png, *.svg\nReport   {workdir}/report.html\n'
        f'Numbers  {workdir}/compare.json')


def following(typed, workdir, jobs):
  """Returns dict command -> what it is for, of what follows a comparison: seeds, where there is one.

  typed: words that say which comparison it was: names, --methods, --by and overrides.
  """
  seeds = {plugins.command('compare', *typed, '--seeds', '0,1,2', '--workdir', f'{workdir}_seeds'):
           'are the differences larger than those between seeds?'}
  return (seeds if len({job.seed for job in jobs}) == 1 else {}) | {
      plugins.command('report', str(workdir / jobs[-1].folder), '--text', 'FILE'):
          'where tokens of your text go',
      'stmoe list': 'all experiments'}


def _write_pages(workdir, runs, labels, costs, title):
  from stmoe.analysis import canvas
  from stmoe.analysis.report import report
  from stmoe.cli import report as command
  _say('drawing figures and writing the report')
  for stem, figure in report.figures(runs, labels).items():
    canvas.save(figure, workdir / 'plots', stem)
  routed = command.routed(*report.of_best(runs, labels), workdir / 'plots')
  page = report.page(runs, costs, labels, routed, title)
  files.write_text(workdir / 'report.html', page)


def print_table(grouped, known):
  """Prints the results and the baselines: a rich table on a terminal, aligned text elsewhere."""
  from stmoe.analysis import table
  headings, rows = table.cells(grouped)
  if not sys.stdout.isatty():
    print(table.plain(headings, rows))
  else:
    from rich import box
    from rich import console
    from rich import table as rich_table
    drawn = rich_table.Table(box=box.SIMPLE_HEAD)
    for i, heading in enumerate(headings):
      style = 'bold' if heading == 'bits/byte' else None
      drawn.add_column(heading, justify='right' if i else 'left', style=style)
    for row in rows:
      drawn.add_row(*row)
    console.Console().print(drawn)
  if known:
    from stmoe.analysis import baselines
    listed = ', '.join(f'{text} {value:.2f}' for text, value in known.items())
    print(f'Baselines in bits per byte, measured on {baselines.MEASURED_ON}: {listed}')


def _say(line):
  print(line, file=sys.stderr, flush=True)
