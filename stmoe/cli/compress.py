"""Makes a smaller run of a trained one: experts are pruned, merged, or whatever a surgery does.

stmoe compress runs/try prune:keep=0.5 --workdir runs/half                the most used half of the experts
stmoe compress runs/try prune:keep=0.5,by=reap --workdir runs/half        or by another score
stmoe compress runs/try merge:keep=0.25,allocation=global --workdir runs/quarter --batches 64
stmoe compress runs/try merge:keep=0.5 --workdir runs/half --distil teacher:weight=0.3
stmoe compress runs/try slim_moe:keep=0.7 --workdir runs/slim --evaluate  narrower experts, scored at once
stmoe compress runs/try ea_quant:bits=4 --workdir runs/codes              experts of 4-bit codes
stmoe eval runs/half                                                      it is a run like any other

METHOD is a file of stmoe/surgery with its fields. Methods that look at data take the first batches of the
run's training data, or of other data given with --config.data...; what they collect stays beside RUN.
"""

from stmoe import lookup
from stmoe import plugins
from stmoe import ranges
from stmoe.derive import downloaded

COMPUTES = True


def add_arguments(parser, kind='surgery'):
  parser.add_argument('run', metavar='RUN', help='a run directory, a downloaded folder, or an experiment')
  parser.add_argument('method', metavar='METHOD',
                      help=f'NAME[:field=value,...] of: {", ".join(lookup.available(kind))}')
  parser.add_argument('--workdir', metavar='DIR', required=True, help='the new run directory')
  parser.add_argument('--step', type=ranges.Natural, help='checkpoint of RUN; default: the newest')
  parser.add_argument('--distil', metavar='TARGET', default='', help='the new run learns from RUN, too: '
                      'NAME[:field=value,...] of a target with a teacher, such as teacher, mc_smoe')
  parser.add_argument('--evaluate', action='store_true', help='score the new model before anything trains')
  parser.add_argument('--batches', type=ranges.Count, default=16, metavar='N', help='of data to look at')
  parser.set_defaults(overrides=())


def run(args, kind='surgery'):
  lookup.spelled(kind, args.method)                                  # before JAX is imported
  from stmoe.derive import foreseen
  foreseen.surgery(args.run, kind, args.method, args.overrides)
  path = downloaded.run_directory(args.run)
  from stmoe.derive import compress
  facts = compress.compress(path, args.method, args.workdir, args.overrides, kind=kind, distil=args.distil,
                            batches=args.batches, evaluate=args.evaluate, step=args.step)
  before, after = facts['parameters']
  size, smaller = facts['bytes']
  print(f'{args.workdir}: parameters {before:,} -> {after:,}, bytes {size:,} -> {smaller:,}; its ancestry: '
        f'{plugins.command("show", args.workdir)}')
