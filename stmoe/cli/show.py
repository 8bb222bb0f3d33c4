"""Prints the resolved configuration of an experiment or a run after overrides, and what a run is made of.

stmoe show lm/stdlib:smoke --config.train.steps=100
stmoe show lm/stdlib --fields                          what every field means, may be, and is by default
stmoe show lm/stdlib --json
stmoe show switch                                      a router, a layer, ...: its file and its fields
stmoe show drop                                        a word: what load, drop, capacity, group, ... mean
stmoe show runs/tuned                                  the configuration of a run, and the runs it is made of
stmoe show DOWNLOADED                                  family, sizes, parameters, whether the model fits here
stmoe show switch/base_c4 --sharding --mesh 8x4x2      every array on 8 data x 4 expert x 2 model devices

On a terminal, fields that have their default are dim.
"""

import os
import shutil
import sys
import textwrap

from stmoe import errors
from stmoe import experiment
from stmoe import explained
from stmoe import lookup
from stmoe import sections
from stmoe.derive import downloaded
from stmoe.plugins import kinds
from stmoe.runs import directory as rundir
from stmoe.runs import lineage

DIM, PLAIN = '\033[2m', '\033[0m'


def add_arguments(parser):
  parser.add_argument('name',
                      help='an experiment, NAME[:argument], the path of a .py file, a run directory, a '
                      'downloaded folder, a name that stmoe list routers, layers, ... prints, or a word')
  parser.add_argument('--json', action='store_true', help='print what a run stores as config.json')
  parser.add_argument('--fields', action='store_true',
                      help='explain every field: what it means, what it may be, its default')
  parser.add_argument('--sharding', action='store_true',
                      help='print the axes, spec, shape and bytes of every array; no device is needed')
  parser.add_argument('--mesh', metavar='DxExM', help='sizes of data, expert and model for --sharding')
  parser.set_defaults(overrides=())


def run(args):
  if args.sharding != bool(args.mesh) or args.sharding and args.json:
    raise errors.UserError('--sharding and --mesh DxExM go together, and without --json; '
                           f'nearest: --sharding --mesh {args.mesh or "8x1x1"}')
  if args.fields and (args.json or args.sharding):
    raise errors.UserError('--fields goes without --json and --sharding')
  for line in _about(args):
    print(line)


def _about(args):
  """Yields the lines about what `args` name: modules, a word, a downloaded folder, or a configuration."""
  columns = shutil.get_terminal_size().columns
  modules = [] if rundir.is_run(args.name) else lookup.kinds_of(args.name)
  for kind in modules:
    yield from explained.of_module(kind, args.name, columns)
  if modules:
    return
  if not os.path.exists(args.name) and (told := explained.word(args.name)):
    yield textwrap.fill(told, columns)
    return
  folder = downloaded.found(args.name)
  if folder and not (args.fields or args.json or args.sharding):
    from stmoe.derive import shown
    yield from shown.lines(args.name, args.overrides)
    return
  if not (folder or rundir.is_run(args.name) or experiment.names_one(args.name)):
    raise experiment.unknown_name(args.name, _others())
  config, name = downloaded.named(args.name, args.overrides)
  if args.fields:
    yield from explained.lines(config, columns)
  elif args.json:
    yield experiment.to_json(config)
  elif args.sharding:
    from stmoe.aot import sharding
    sizes = sharding.mesh_of(args.mesh)
    yield from sharding.lines(sharding.rows(config, sizes), sizes)
  else:
    yield from _resolved(config, name)
    yield from lineage.lines(args.name) if rundir.is_run(args.name) else ()


def _resolved(config, name):
  """Yields the lines of a configuration; on a terminal, fields that have their default are dim."""
  yield f'{name}  (run id {experiment.run_id(config)[:8]})'
  colours = sys.stdout.isatty() and 'NO_COLOR' not in os.environ
  yield from _lines(config.to_dict(), '', sections.defaults(config) if colours else ())


def _others():
  """What the command shows beside experiments and folders: words and modules."""
  return {*explained.words(), *(name for kind in kinds.PLURALS
                                for name in (*lookup.available(kind), *lookup.wrappers(kind)))}


def _lines(fields, path, usual):
  """One line per field, then the groups with their fields indented below their names.

  usual: paths of the fields to be dim.
  """
  indent, width = '  ' * path.count('.'), max(map(len, fields), default=0)
  for key, value in sorted(fields.items(), key=lambda field: isinstance(field[1], dict)):
    if isinstance(value, dict) and value:
      yield f'{indent}{key}'
      yield from _lines(value, f'{path}{key}.', usual)
      continue
    line = f'{indent}{key:{width}}  {value!r}'
    yield f'{DIM}{line}{PLAIN}' if f'{path}{key}' in usual else line
