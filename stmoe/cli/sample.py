"""Draws images from a run that learned to remove noise: a grid, all arrays, and a score.

stmoe sample runs/digits                                   64 images of 50 steps into runs/digits/samples.png
stmoe sample runs/digits --out FILE.png --num 256 --steps 250 --seed 1
stmoe sample runs/digits --sampler ddim --steps 20 --guidance 1.5 --label 3,5

FILE.npz beside the picture holds images, labels and the load of every expert at every step; no array in it
needs pickle. `stmoe plot` and `stmoe report` then draw the share of experts by noise level.
"""

import json
import pathlib
import sys

from stmoe import errors
from stmoe import experiment
from stmoe import files
from stmoe import ranges
from stmoe.derive import downloaded
from stmoe.runs import directory as rundir

COMPUTES = True


def add_arguments(parser):
  parser.add_argument('run', metavar='RUN', help='a run directory, a downloaded folder, or an experiment')
  parser.add_argument('--out', metavar='FILE.png', type=pathlib.Path,
                      help='the grid; default: RUN/samples.png')
  parser.add_argument('--num', type=ranges.Count, default=64, metavar='N', help='images; default: 64')
  parser.add_argument('--steps', type=ranges.Count, default=50, metavar='N', help='of sampling; default: 50')
  parser.add_argument('--sampler', default='', metavar='NAME',
                      help='ddpm or ddim of target ddpm, euler of target flow; default: the first')
  parser.add_argument('--guidance', type=ranges.NonNegative, default=1.0, metavar='S',
                      help='towards the class; default: 1, none')
  parser.add_argument('--label', type=ranges.Many(ranges.Whole(-1), least=1), default=(), metavar='N,N',
                      help='classes of the images, in turn; -1 = none; default: all classes')
  parser.add_argument('--seed', type=ranges.Seed, default=0, help='default: 0')
  parser.add_argument('--step', type=ranges.Natural, help='which checkpoint; default: the newest')
  parser.add_argument('--json', action='store_true', help='print the score as JSON')
  parser.set_defaults(overrides=())


def run(args):
  path = downloaded.run_directory(args.run)
  cfg = rundir.opened(path, args.step)
  experiment.override(cfg, args.overrides, whole=False)
  out = args.out or path / 'samples.png'
  if out.suffix != '.png':
    raise errors.UserError(f'--out {out}: the grid is a .png, all arrays go to a .npz beside it; nearest: '
                           f'{out.with_suffix(".png")}')
  files.check_place('--out', out)
  from stmoe.answer import samples
  say = lambda line: print(line, file=sys.stderr)
  drawn = samples.draw(cfg, path, say, number=args.num, steps=args.steps, sampler=args.sampler,
                       guidance=args.guidance, seed=args.seed, labels=args.label, step=args.step)
  for file in samples.write(drawn, path, out):
    say(f'wrote {file}')
  if args.json:
    print(json.dumps(files.plain(dict(step=drawn.step, **drawn.score))))
  else:
    print('\n'.join(f'{name:14} {value:.6g}' for name, value in drawn.score.items()))
