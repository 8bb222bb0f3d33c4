"""The rooms: floors without a circle, folders that one look takes in, names that say one thing."""

import collections
import graphlib
import pathlib

from stmoe import lookup
from tests import test_architecture as architecture

STMOE = architecture.ROOT / 'stmoe'
MOST = 16                                # files of a folder, where no file is an entry of a registry
# Folders whose files are entries: methods, commands, kinds of figures.
REGISTRIES = {pathlib.Path(*package.split('.')[1:]) for package in lookup.PACKAGES.values()}
REGISTRIES |= {package / 'wrappers' for package in REGISTRIES}
REGISTRIES |= {pathlib.Path(folder) for folder in (
    'cli', 'data/text/families', 'analysis/figures', 'analysis/scaling/figures')}
# What a name means, where two rooms have a file of that name.
TWICE = {
    'cache': 'data/text: tokens of a task on disk; parts: what a model remembers while it writes',
    'choices': 'core: how a token chooses; analysis/routing: what trained routers chose',
    'loop': 'train: of steps; decode: of tokens',
    'step': 'train: one step of the optimizer; aot: compiled without its device; bench: timed',
    'tasks': 'data/text: what they are; conform: what they must do',
    'text': 'aot: a report as text; analysis/routing: routed text',
}


def files():
  """Returns the paths of all modules below stmoe/."""
  return sorted(path.relative_to(STMOE) for path in STMOE.rglob('*.py') if path.name != '__init__.py')


def crowded(paths):
  """Returns dict folder -> number of its files, of those with more than MOST."""
  count = collections.Counter(path.parent for path in paths if path.parent not in REGISTRIES)
  return {str(folder): number for folder, number in count.items() if number > MOST}


def ambiguous(paths):
  """Returns dict name -> folders, of names that several rooms have and TWICE does not explain."""
  rooms = collections.defaultdict(list)
  for path in paths:
    if path.parent not in REGISTRIES:
      rooms[path.stem].append(str(path.parent))
  return {name: folders for name, folders in rooms.items() if len(folders) > 1 and name not in TWICE}


def test_floors_have_no_circle():
  floors = {part: below - {part} for part, below in architecture.ARROWS.items()}
  order = list(graphlib.TopologicalSorter(floors).static_order())
  assert order.index('core') < order.index('routers') < order.index('train') < order.index('cli')


def test_folders_are_rooms():
  assert crowded(files()) == {}
  assert crowded([pathlib.Path(f'room/{number}.py') for number in range(MOST + 1)]) == {'room': MOST + 1}


def test_names_say_one_thing():
  assert ambiguous(files()) == {}
  assert ambiguous([pathlib.Path('a/x.py'), pathlib.Path('b/x.py')]) == {'x': ['a', 'b']}
  rooms = collections.Counter(path.stem for path in files() if path.parent not in REGISTRIES)
  assert all(rooms[name] > 1 for name in TWICE)
