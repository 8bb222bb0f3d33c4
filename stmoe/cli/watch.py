"""Shows runs while they train, live in the terminal: losses, load of the experts, speed, time left.

stmoe watch runs/switch                         one run; Ctrl-C ends the view, not the run
stmoe watch runs/zoo                            all runs of a folder, side by side
stmoe watch runs/a runs/b --once                print once and end

Only files of the run directories are read: runs of other machines are watched on a shared file system. A bar
is an expert: half the height is an even share, red is twice the even share or more, a dot gets no token.
"""

import pathlib
import time

from stmoe import ranges


def add_arguments(parser):
  parser.add_argument('runs', nargs='+', metavar='RUN', help='a run directory, or a folder of them')
  parser.add_argument('--every', type=ranges.Positive, default=2.0, metavar='S', help='seconds between looks')
  parser.add_argument('--once', action='store_true', help='print once and end')


def run(args):
  from rich import console
  from rich import live
  from stmoe.analysis import watching
  from stmoe.runs import read

  paths = read.expand(args.runs)
  for path in paths:
    watching.snapshot(path)              # what is no run is said before the screen is taken
  screen = console.Console()
  if args.once:
    screen.print(_drawn(paths))
    return
  with live.Live(_drawn(paths), console=screen, auto_refresh=False) as view:
    while not all((path / 'DONE').exists() for path in map(pathlib.Path, paths)):
      time.sleep(args.every)
      view.update(_drawn(paths), refresh=True)
    view.update(_drawn(paths), refresh=True)


def _drawn(paths):
  """All panels, as many side by side as there is room for."""
  from rich import columns
  from stmoe.analysis import watching
  shots = [watching.snapshot(path) for path in paths]
  return columns.Columns([watching.panel(shot, _peak(shot)) for shot in shots])


def _peak(shot):
  """FLOP/s of all devices of a run, None where the vendor's figure is not known."""
  from stmoe.hosts import hardware
  chip = shot.devices and hardware.of_kind(shot.devices[0])
  return chip and chip.flops * shot.devices[1]
