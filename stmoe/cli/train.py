"""Trains an experiment in a run directory; the same command continues a run that was stopped.

stmoe train lm/stdlib:method=switch,smoke --workdir runs/try --config.train.steps=100
stmoe train runs/try                                                continues it
stmoe train lm/stdlib --help                                        also lists the fields of the configuration
stmoe train --like runs/try --workdir runs/other --config.seed=1    a new run of the same configuration
stmoe train --like runs/try --workdir runs/other --replay FILE      with recorded routing, see stmoe record

Ctrl-C and SIGTERM save and stop. A finished run says so at once; more --config.train.steps go on from it.
"""

import pathlib
import shutil
import sys

from stmoe import errors
from stmoe import explained
from stmoe.hosts import job
from stmoe.runs import directory as rundir
from stmoe.runs import plugged
from stmoe.runs import records

COMPUTES = True
TRAINS = True


def add_arguments(parser):
  parser.add_argument('name', nargs='?',
                      help='an experiment, NAME[:argument], a .py file, or a run that is to go on')
  parser.add_argument('--like', metavar='RUN', help='a new run with the configuration of this run directory')
  parser.add_argument('--workdir', help='run directory; default: in runs/, called like the experiment')
  parser.add_argument('--replay', metavar='FILE', help='a recording of routing: its rows, its experts')
  job.add_arguments(parser)
  parser.set_defaults(overrides=())


def help_of(words):
  """Returns lines on the configuration that the words of a command name: `stmoe train NAME --help`."""
  names = [word for word in words if not word.startswith('-')][:1]
  if not names:
    return ['stmoe train NAME --help also lists the fields of the configuration NAME.']
  config, name = rundir.named(names[0], [word for word in words if word.startswith('--config.')])
  return [f'Fields of {name}, set by --config.a.b=VALUE:', '',
          *explained.lines(config, shutil.get_terminal_size().columns)]


def run(args):
  cfg, name = rundir.named(_named(args), args.overrides)
  if rundir.is_run(name):
    plugged.present(name, cfg)
  workdir = args.workdir or (name if rundir.is_run(name) else rundir.default(name, cfg))
  if args.replay:
    from stmoe.data import recording
    recording.replay(cfg, args.replay, args.like or (name if rundir.is_run(name) else None))
  if job.size() == 1 and rundir.finished(workdir, cfg):              # says so before JAX is imported
    return 0
  if args.like and not rundir.is_run(workdir) and (made := records.ancestry(args.like).get('lineage')):
    print(f'note: {args.like} was made by {made[0]["method"]} and {workdir} begins from nothing, with its '
          f'configuration alone; stmoe finetune begins from its parameters', file=sys.stderr)
  from stmoe.train import loop
  return loop.train(cfg, workdir, name)


def _named(args):
  """What names the configuration: an experiment, or a run directory."""
  if (args.name is None) == (args.like is None):
    raise errors.UserError('give an experiment, or --like RUN; see stmoe train --help')
  if args.like is None:
    own = args.workdir is None or pathlib.Path(args.workdir).resolve() == pathlib.Path(args.name).resolve()
    if rundir.is_run(args.name) and not own:
      raise errors.UserError(f'{args.name} is a run, which goes on in its own folder; nearest: --like '
                             f'{args.name} --workdir {args.workdir}, a new run of its configuration')
    return args.name
  if not rundir.is_run(args.like):
    raise errors.UserError(f'--like {args.like} is not a run directory: it has no config.json')
  if args.workdir is None:
    raise errors.UserError(f'--like {args.like} needs the run directory of the new run: --workdir DIR')
  return args.like
