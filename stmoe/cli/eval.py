"""Evaluates the newest checkpoint of a run, or another one with --step.

stmoe eval runs/try
stmoe eval lm/stdlib:smoke --step 30 --config.eval.batches=0      the default run directory of a name
"""

import json
import pathlib
import sys

from stmoe import experiment
from stmoe.train import rundir


def add_arguments(parser):
  parser.add_argument('run', metavar='RUN', help='a run directory, or the experiment whose default one it is')
  parser.add_argument('--step', type=int, help='which checkpoint; default: the newest')
  parser.add_argument('--json', action='store_true', help='print the metrics as JSON')
  parser.set_defaults(overrides=())


def run(args):
  path = pathlib.Path(args.run)
  if not path.is_dir():
    path = pathlib.Path(experiment.default_workdir(experiment.load(args.run)[1]))
  cfg = rundir.load(path)
  for override in args.overrides:
    experiment.apply(cfg, override)
  from stmoe.train import score
  step, values = score.score(cfg, path, lambda text: print(text, file=sys.stderr), args.step)
  if args.json:
    print(json.dumps({'step': step} | values))
  else:
    print('\n'.join(f'{name:20} {value:.6g}' for name, value in values.items()))
