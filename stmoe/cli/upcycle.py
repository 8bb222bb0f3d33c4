"""Starts a sparse run from trained ones: experts are copies of dense layers, or the experts of several runs.

stmoe upcycle runs/dense upcycling/stdlib:method=top2 --workdir runs/sparse
stmoe train upcycling/stdlib:method=top2 --workdir runs/sparse         goes on from there
stmoe upcycle runs/law runs/code runs/math NAME --workdir DIR --step zero         several: BTX, BAM
stmoe upcycle runs/a runs/b NAME --workdir DIR         of sparse runs: the experts of all (Z-code M3)

NAME has the backbone of the run. Routers of experts from dense layers are fresh, others are joined. The
images of NAME may be of another size: positions are resized, those of the run as well. All models are
evaluated at once, on the data of NAME; the step-0 gap is printed and in DIR/ancestry.json. The
data goes on where the run stopped if seed, data and batch size are the same, else from the beginning.
Attention is averaged, or mixed where NAME has attention experts (BAM).
"""

import contextlib

from stmoe import experiment
from stmoe import plugins
from stmoe import ranges
from stmoe.derive import downloaded
from stmoe.runs import directory as rundir

COMPUTES = True


def add_arguments(parser):
  parser.add_argument('runs', nargs='+', metavar='RUN',
                      help='a run directory, a downloaded folder, or an experiment; all are alike')
  parser.add_argument('name', metavar='NAME', help='the sparse experiment, NAME[:argument], or a .py file')
  parser.add_argument('--workdir', metavar='DIR', help='the new run directory; default: runs/ and the name')
  parser.add_argument('--noise', type=ranges.NonNegative, default=0.0, metavar='S',
                      help="Gaussian noise on the copies, in standard deviations of each array's weights")
  parser.add_argument('--granularity', type=ranges.Count, default=1, metavar='G',
                      help='experts are 1/G of the dense layer each (virtual groups)')
  parser.add_argument('--scale', type=ranges.Positive, metavar='A',
                      help='factor on the outputs of experts; default: what --granularity and the gates need')
  parser.add_argument('--base', choices=('average', 'first'), default='average',
                      help='of several runs: what becomes of all that is no expert')
  parser.add_argument('--optimizer', choices=('fresh', 'reuse'), default='fresh',
                      help="slots: empty (the paper's choice for language), or the dense run's (vision)")
  parser.add_argument('--step', choices=('keep', 'zero'), default='keep',
                      help='whether the step counter, and with it the schedule, goes on')
  parser.set_defaults(overrides=())


def run(args):
  cfg, name = experiment.load(args.name, args.overrides)
  from stmoe.derive import foreseen
  foreseen.texts(args.runs, cfg)
  dense = [downloaded.run_directory(run) for run in args.runs]
  workdir = args.workdir or rundir.default(name, cfg, dense)
  from stmoe.derive import upcycle
  from stmoe.train import progress
  with contextlib.closing(progress.make(None, 0)) as show:
    record = upcycle.upcycle(
        dense, cfg, workdir, show, noise=args.noise, scale=args.scale, granularity=args.granularity,
        base=args.base, optimizer=args.optimizer, step=args.step)
  print('\n'.join(_lines(record)))
  go_on = plugins.command('train', args.name, '--workdir', str(workdir), *args.overrides)
  print(f'{workdir} starts at step {record["step"]:,}; go on with: {go_on}')


def _lines(record):
  """The record of `train.upcycle.upcycle` as lines."""
  kinds = list(record['leaves'].values())
  title = 'sparse' if 'joined' in kinds else 'dense'
  for values in record['runs']:
    yield f'{title:8}  eval loss {values["eval/loss"]:.6f}   step {values["step"]:,} of {values["run"]}'
  yield (f'upcycled  eval loss {record["upcycled"]["eval/loss"]:.6f}   gap {record["gap"]:+.6f}, logits '
         f'changed by {record["difference"]:.2g} of their norm')
  dense, sparse = record['parameters']
  yield (f'arrays: {", ".join(f"{kinds.count(k)} {k}" for k in sorted({*kinds}))}; '
         f'parameters {dense:,} -> {sparse:,}')
