"""Records to which experts a run sends the tokens of its data, for another program to replay.

stmoe record runs/a --output routes.npz                        all of the evaluation split, newest checkpoint
stmoe record runs/a --output routes.npz --split train --batches 8     its first training batches
stmoe infer runs/a prompts.txt --record routes.npz             of generated texts
stmoe eval runs/b --replay routes.npz                          another run on this batch, with these experts
stmoe train --like runs/b --workdir runs/c --replay routes.npz        train and finetune, alike

A recording holds the batch, the experts of every token in every layer, and digests of model and batch (an npz
without pickle, stmoe/data/recording.py). Where it is replayed, routers weigh the recorded experts by their
own present logits: gradients reach the router, and none goes through the choice (arXiv:2510.11370). Nothing
is random, and capacity is that of evaluation. A choice that found no slot is recorded as none.
"""

import pathlib
import sys

from stmoe import errors
from stmoe import experiment
from stmoe import files
from stmoe import plugins
from stmoe import ranges
from stmoe import sections
from stmoe.derive import downloaded
from stmoe.runs import directory as rundir

COMPUTES = True


def add_arguments(parser):
  parser.add_argument('run', metavar='RUN', help='a run directory, a downloaded folder, or an experiment')
  parser.add_argument('--output', metavar='FILE', type=pathlib.Path, required=True, help='the recording')
  parser.add_argument('--step', type=ranges.Natural, help='which checkpoint; default: the newest')
  parser.add_argument('--best', action='store_true', help='the checkpoint that checkpoint.best kept')
  parser.add_argument('--split', default='validation', metavar='SPLIT', help='validation (default) or train')
  parser.add_argument('--batches', type=ranges.Natural, default=0, metavar='N', help='0 = the whole split')
  parser.set_defaults(overrides=())


def run(args):
  if args.best and args.step is not None:
    raise errors.UserError('--best and --step do not go together')
  files.check_place('--output', args.output)
  from stmoe.derive import foreseen
  foreseen.data(args.run, args.overrides)
  path = downloaded.run_directory(args.run)
  cfg = rundir.opened(path, args.step, 'best' if args.best else 'checkpoints')
  experiment.override(cfg, args.overrides, whole=False)
  sections.present(cfg)
  from stmoe.answer import recorder
  recorder.of_run(path, args.output, cfg, step=args.step, best=args.best, batches=args.batches,
                  split=args.split, say=lambda line: print(line, file=sys.stderr))
  replay = plugins.command('eval', 'RUN', '--replay', str(args.output))
  print(f'{args.output}: {args.output.stat().st_size:,} bytes; {replay}')
