"""Evaluates the newest checkpoint of a run, or another one with --step.

stmoe eval runs/try
stmoe eval lm/stdlib:smoke --step 30 --config.eval.batches=0      the default run directory of a name
stmoe eval runs/rte --best                                        scores of the tasks it was fine-tuned on
stmoe eval runs/try --replay FILE                                 with recorded routing, see stmoe record
stmoe eval runs/try --task boolq --config.data.jsonl=TRAIN,VAL    a task it was not, by rank and decoding
stmoe eval runs/try --tasks FILE_OR_FOLDER --shots 0,3            task files of BIG-bench
stmoe eval runs/try --sweep blocks.m.router.eval_k=1,2,4,8        one checkpoint, several values of a field
stmoe eval runs/try --sweep 'blocks.*.router.capacity_factor=(1.0,1.0);(1.0,2.0)'

A sweep prints a table and adds its lines to RUN/evals.jsonl, from which `stmoe plot` draws it. Values stand
between commas, or between semicolons where they contain commas; `*` sets a field of several layers.

--tasks prints a table and writes RUN/results_big_bench.json, from which `stmoe plot` draws the calibration.
Of each task it draws eval.examples examples, or takes all: 0.
"""

import json
import sys

from stmoe import errors
from stmoe import experiment
from stmoe import files
from stmoe import ranges
from stmoe import sections
from stmoe.derive import downloaded
from stmoe.hosts import job
from stmoe.runs import directory as rundir

COMPUTES = True


def add_arguments(parser):
  parser.add_argument('run', metavar='RUN', help='a run directory, a downloaded folder, or an experiment')
  parser.add_argument('--step', type=ranges.Natural, help='which checkpoint; default: the newest')
  parser.add_argument('--best', action='store_true', help='the checkpoint that checkpoint.best kept')
  parser.add_argument('--task', metavar='TASK', help='score this task, or TASK,TASK')
  parser.add_argument('--tasks', metavar='FILE_OR_FOLDER', help='task files of BIG-bench')
  parser.add_argument('--shots', metavar='N,N', help='examples before a question of --tasks (default: 0)')
  parser.add_argument('--sweep', metavar='FIELD=V1,V2', help='evaluate with the field at each value')
  parser.add_argument('--replay', metavar='FILE', help='a recording of routing: its rows, its experts')
  parser.add_argument('--json', action='store_true', help='print the metrics as JSON')
  job.add_arguments(parser)
  parser.set_defaults(overrides=())


def run(args):
  _check_together(args)
  shots = _shots(args)
  tasks = _read_tasks(args.tasks)
  from stmoe.derive import foreseen
  foreseen.replayed(args.run, args.replay)
  if not (tasks or args.replay):
    for name in (args.task or '').split(','):
      foreseen.data(args.run, [f'--config.data.task={name}'] * bool(name) + list(args.overrides))
  path = downloaded.run_directory(args.run)
  cfg = rundir.opened(path, args.step, 'best' if args.best else 'checkpoints')
  if args.task:
    from stmoe.train import taskscore
    taskscore.set_task(cfg, args.task.split(','), path)
  experiment.override(cfg, args.overrides, whole=False)
  if args.replay:
    _replay(cfg, path, args)
  sections.present(cfg)
  if args.sweep:
    _sweep(cfg, path, args)
    return
  if args.tasks:
    _task_files(cfg, path, args, tasks, shots)
    return
  from stmoe.answer import score
  if args.task or cfg.eval.methods:
    _tasks(cfg, path, args)
    return
  step, values = score.score(cfg, path, _say, args.step, args.best)
  if not job.leads():
    return
  if args.json:
    print(json.dumps(files.plain({'step': step} | values)))
  else:
    print('\n'.join(f'{name:20} {value:.6g}' for name, value in values.items()))


def _check_together(args):
  """Raises UserError for two checkpoints, or for two kinds of evaluation."""
  if args.best and args.step is not None:
    raise errors.UserError('--best and --step do not go together')
  given = [flag for flag in ('tasks', 'task', 'sweep', 'replay') if getattr(args, flag)]
  if len(given) > 1:     # a sweep's lines in evals.jsonl are of the run's own data, so not of a recording
    raise errors.UserError(f'--{given[0]} and --{given[1]} do not go together')


def _shots(args):
  """The numbers of --shots; UserError for anything else, or without --tasks."""
  if args.shots and not args.tasks:
    raise errors.UserError('--shots is for --tasks FILE_OR_FOLDER')
  texts = (args.shots or '0').split(',')
  if not all(text.isdecimal() for text in texts):
    raise errors.UserError(f'--shots {args.shots}: numbers between commas, for example 0,1,3')
  return list(dict.fromkeys(map(int, texts)))


def _read_tasks(file):
  """The task files of BIG-bench that --tasks names."""
  from stmoe.data.text import big_bench
  return big_bench.read(file) if file else ()


def _task_files(cfg, path, args, tasks, shots):
  """Prints the table of task files of BIG-bench, and keeps everything in the run."""
  from stmoe.analysis import table
  from stmoe.answer import task_files
  task_files.check(tasks, shots, _say, cfg.eval.examples)
  with task_files.system(cfg, path, tasks, _say, args.step, args.best) as (system, step):
    _say(f'scoring the checkpoint of step {step:,}')
    found = task_files.evaluate(system, tasks, shots, cfg.eval.examples, _say)
    record = task_files.record(step, found, system.num_cut)
  task_files.write(path, record)
  if args.json:
    print(json.dumps(files.plain(record)))
    return
  print(table.plain(task_files.HEADINGS, task_files.rows(found)))
  if system.num_cut:
    print(f'{system.num_cut} rows have over data.length={cfg.data.length} tokens and lose their beginning')


def _replay(cfg, path, args):
  """Gives `cfg` all rows of the recording --replay as its data."""
  from stmoe.data import recording
  about = recording.replay(cfg, args.replay, path)
  with cfg.unlocked():
    cfg.eval.batches = 0
  _say(f'replaying the routing of step {about.step:,} of {about.run}')


def _tasks(cfg, path, args):
  """Prints the table of the tasks of `cfg`, and keeps it in results.json, or results_TASK.json."""
  from stmoe.answer import score
  from stmoe.train import taskscore
  scores = score.tasks(cfg, path, _say, args.step, args.best)
  if not job.leads():
    return
  name = f'results_{args.task}.json' if args.task else 'results.json'
  taskscore.write(path, scores, name)
  print(json.dumps(files.plain(scores)) if args.json else '\n'.join(taskscore.table(scores)))


def _say(line):
  if job.leads():
    print(line, file=sys.stderr)


def _sweep(cfg, path, args):
  """Evaluates under every value of --sweep and prints a row for each."""
  field, equals, text = args.sweep.partition('=')
  texts = [word for word in text.split(';' if ';' in text else ',') if word]
  if not equals or not texts:
    raise errors.UserError(f'--sweep {args.sweep}: write FIELD=V1,V2, for example eval.draws=1,4')
  experiment.matching(cfg, field)                                    # before JAX is imported
  from stmoe.analysis import table
  from stmoe.answer import score
  evaluated = list(score.sweep(cfg, path, field, texts, _say, args.step, args.best))
  if not job.leads():
    return
  if args.json:
    lines = [dict(step=step, value=value) | values for value, step, values in evaluated]
    print(json.dumps(files.plain(lines)))
    return
  names = list(dict.fromkeys(name for *_, values in evaluated for name in values))
  rows = [[str(value), *(f'{values[name]:.6g}' for name in names)] for value, _, values in evaluated]
  print(table.plain([field, *(name.removeprefix('eval/') for name in names)], rows))
