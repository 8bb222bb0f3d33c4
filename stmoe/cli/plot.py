"""Draws what runs have logged: loss, routing health and expert load, as PNG and SVG.

stmoe plot runs/switch                          into runs/switch/plots
stmoe plot runs/dense runs/switch --out DIR     all in the same axes
stmoe plot runs/momentum                        all runs in this folder, of a sweep or a comparison
"""

import pathlib

from stmoe import errors
from stmoe import plugins
from stmoe.derive import downloaded


def add_arguments(parser):
  parser.add_argument('runs', nargs='+', metavar='RUN',
                      help='a run directory, finished or still running, or a folder of some')
  parser.add_argument('--out', metavar='DIR', type=pathlib.Path,
                      help='where the figures go; RUN/plots for one run, ./plots for several')


def run(args):
  from stmoe.analysis import baselines
  from stmoe.analysis import canvas
  from stmoe.analysis import curves
  from stmoe.runs import read as runs

  folder = next((name for name in args.runs if downloaded.found(name)), None)
  if folder is not None:
    instead = plugins.command('report', folder, '--text', 'FILE')
    raise errors.UserError(f'{folder} is a downloaded folder, and no training is in it that could be drawn; '
                           f'nearest: {instead}, which draws its routing')
  readable = runs.read_all(runs.expand(args.runs))
  out = args.out or (readable[0].path / 'plots' if len(readable) == 1 else pathlib.Path('plots'))
  for stem, figure in curves.figures(readable, baselines=baselines.common(readable)).items():
    png, _ = canvas.save(figure, out, stem)
    print(f'{png} and .svg')
