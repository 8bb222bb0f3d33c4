"""Trains an experiment in a run directory; the same command continues a run that was stopped.

stmoe train lm/stdlib:method=switch,smoke --workdir runs/try --config.train.steps=100

Ctrl-C and SIGTERM save and stop. A finished run says so at once; more --config.train.steps go on from it.
"""

from stmoe import experiment
from stmoe.hosts import job
from stmoe.runs import directory as rundir


def add_arguments(parser):
  parser.add_argument('name', help='an experiment, NAME[:argument], or the path of a .py file')
  parser.add_argument('--workdir', help='run directory; default: runs/ and the name')
  job.add_arguments(parser)
  parser.set_defaults(overrides=())


def run(args):
  cfg, name = experiment.load(args.name, args.overrides)
  workdir = args.workdir or experiment.default_workdir(name)
  if job.size() == 1 and rundir.finished(workdir, cfg):              # says so before JAX is imported
    return 0
  from stmoe.train import loop
  return loop.train(cfg, workdir, name)
