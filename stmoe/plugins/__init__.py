"""Files outside of this project that hold what files of its folders hold: routers, experts, metrics, ...

A plugin is code. It runs as soon as a configuration names what it holds: name no plugin that you did not
read. `--plugin FILE` of any command names a file, and so does $STMOE_PLUGINS, in which several stand like the
folders of $PATH. An installed package names its modules in the entry-point group `stmoe.plugins`:
`my_router = my_package.my_router`.

The file's name is the name of what it holds, as of the project's own files. What it holds is told by the
file's text: by what stands at its top, and by the class called like the file (kinds.py). A file may hold
several kinds, as the router, the surgery and the metric of one paper. Plugins import one another as if they
lay in the folders of their kinds: `from stmoe.routers import my_router`.
"""

import ast
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shlex
import sys
import types
import typing

from stmoe import errors
from stmoe.plugins import kinds

VARIABLE, GROUP = 'STMOE_PLUGINS', 'stmoe.plugins'
OWN = pathlib.Path(__file__).parents[1]  # the folder stmoe


class Plugin(typing.NamedTuple):
  """A file of somebody else: what it holds (keys of KINDS), its path, and its module if it is installed.

  sha256:  of its text when it was read.
  imports: places (below) of modules in the folders of kinds that its text imports, plugins or not.
  """
  kinds: tuple[str, ...]
  path: pathlib.Path
  module: str | None
  sha256: str
  imports: tuple[str, ...]

  @property
  def name(self) -> str:
    """Returns what a configuration calls it."""
    return self.path.stem

  @property
  def packages(self) -> list[str]:
    """Returns the packages of the project beside whose modules it stands."""
    return list(dict.fromkeys(kinds.KINDS[kind] for kind in self.kinds))

  @property
  def places(self) -> list[str]:
    """Returns the names under which Python has its module, which is one module under all of them."""
    return [f'{package}.{self.name}' for package in self.packages]

  @property
  def holds(self) -> str:
    """Returns what it holds, for messages: "the router 'mine'"."""
    return f'the {" and the ".join(self.kinds)} {self.name!r}'


class Text(importlib.machinery.SourceFileLoader):
  """Compiles what a file says now, and leaves nothing beside it.

  Python's own cache of compiled files takes a file of equal size and second for an equal file.
  """

  def get_code(self, fullname):
    """Returns the code of the file."""
    return self.source_to_code(self.get_data(self.path), self.path)


def add(file: str | os.PathLike) -> Plugin:
  """Returns the Plugin in `file`, which this process and the processes it starts know from now on.

  A file that is named again is read again: what is built from now on is built by its present text.
  Raises UserError for a file that is none, or whose name the project or another plugin has already.
  """
  path = pathlib.Path(file).absolute()
  earlier = next((plugin for plugin in known() if plugin.path == path), None)
  present = _of_file(path, earlier and earlier.module)
  if present != earlier:
    _forget([present, *(known() if earlier else ())])                # others may hold what they import of it
    _known.cache_clear()
  listed = [text for text in os.environ.get(VARIABLE, '').split(os.pathsep) if text]
  both = os.pathsep.join(listed if str(path) in listed else [*listed, str(path)])
  plugin = next(plugin for plugin in _known(both) if plugin.path == path)       # before it is believed
  os.environ[VARIABLE] = both
  return plugin


def known() -> tuple[Plugin, ...]:
  """Returns all plugins: those of $STMOE_PLUGINS, and those of installed packages."""
  return _known(os.environ.get(VARIABLE, ''))


def words() -> list[str]:
  """Returns the words '--plugin', FILE, ... by which a command on another machine knows the same files."""
  return [word for plugin in known() if not plugin.module for word in ('--plugin', str(plugin.path))]


def command(*typed: str) -> str:
  """Returns the command line `stmoe TYPED` as somebody can type it here, with the files known now."""
  return shlex.join(['stmoe', *typed, *words()])


def files(package: str) -> dict[str, pathlib.Path]:
  """Returns dict name -> file of the plugins that stand beside the modules of `package`."""
  return {plugin.name: plugin.path for plugin in known() if package in plugin.packages}


def module(package: str, name: str) -> types.ModuleType | None:
  """Returns the module of plugin `name` beside those of `package`, whose code runs; None if there is none."""
  plugin = next((p for p in known() if package in p.packages and p.name == name), None)
  if plugin is None:
    return None
  if plugin.module:
    return importlib.import_module(plugin.module)
  dotted = f'{package}.{name}'
  if dotted not in sys.modules:
    spec = _spec(plugin, dotted)
    sys.modules[dotted] = importlib.util.module_from_spec(spec)
    try:
      with errors.of_file(plugin.path, *(other.path for other in known())):      # those that it imports
        spec.loader.exec_module(sys.modules[dotted])
    except BaseException:
      sys.modules.pop(dotted, None)
      raise
  return sys.modules[dotted]


def blamed(error: BaseException) -> str:
  """Returns 'FILE, line N: KIND: TEXT' of an error that the code of a plugin met; '' of any other error."""
  return errors.placed(error, [plugin.path for plugin in known()])


def _forget(changed):
  """Makes Python read plugins again."""
  for plugin in changed:
    for package, place in zip(plugin.packages, plugin.places):
      sys.modules.pop(place, None)
      home = sys.modules.get(package)    # Python's `import` leaves the module in it
      if isinstance(getattr(getattr(home, plugin.name, None), '__loader__', None), _Loader):
        delattr(home, plugin.name)


def _spec(plugin, dotted):
  """The spec by which Python makes the module `dotted` of a plugin."""
  return importlib.util.spec_from_file_location(dotted, plugin.path, loader=_Loader(dotted, plugin))


class _Loader(Text):
  """Runs a plugin's code once: a file of several kinds is one module, by whichever name it is imported."""

  def __init__(self, fullname, plugin):
    super().__init__(fullname, str(plugin.path))
    self._loaded = next((sys.modules[place] for place in plugin.places if place in sys.modules), None)

  def create_module(self, spec):
    """Returns the module that is there; None = a new one."""
    return self._loaded

  def exec_module(self, module):
    """Runs the code of a new module."""
    if module is not self._loaded:
      super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
  """Lets Python's `import` find plugins in the packages of their kinds: plugins import one another."""

  @staticmethod
  def find_spec(fullname, path=None, target=None):
    """Returns the spec of a plugin, or None for every other module."""
    package, _, name = fullname.rpartition('.')
    if package in kinds.KINDS.values() and VARIABLE in os.environ:
      plugin = next((p for p in known() if package in p.packages and p.name == name and not p.module), None)
      return plugin and _spec(plugin, fullname)
    return None


sys.meta_path.append(Finder())           # after Python's own: no plugin stands in the place of a file


@functools.cache
def _known(listed: str) -> tuple[Plugin, ...]:
  """The plugins in the files of `listed`, and the installed ones."""
  named = [_of_file(pathlib.Path(text).absolute()) for text in listed.split(os.pathsep) if text]
  found: dict[tuple, Plugin] = {}
  for plugin in (*named, *_installed()):
    for kind in plugin.kinds:
      other = found.setdefault((kind, plugin.name), plugin)
      if other.path.resolve() != plugin.path.resolve():
        raise errors.UserError(f'plugins {other.path} and {plugin.path} both hold the {kind} '
                               f'{plugin.name!r}; rename a file and its class')
  return tuple(dict.fromkeys(found.values()))


@functools.cache
def _installed():
  """The plugins of installed packages; a line on stderr says which entry cannot be used, and why."""
  usable = []
  for entry in importlib.metadata.entry_points(group=GROUP):
    try:
      usable.append(_of_file(_source(entry.value), entry.value))
    except (errors.UserError, ImportError, ValueError) as error:
      print(f'note: the plugin {entry.name} of {entry.dist and entry.dist.name} is left out: {error}',
            file=sys.stderr)
  return usable


def _source(dotted):
  """The file of a module, which is not imported; the package that it is in is."""
  spec = importlib.util.find_spec(dotted)
  if spec is None or spec.origin is None:
    raise errors.UserError(f'there is no module {dotted}')
  return pathlib.Path(spec.origin)


def _of_file(path, dotted=None):
  """The Plugin in the file `path`."""
  if not re.fullmatch(r'[^\W_]\w{0,60}\.py', path.name):
    file = path.with_name(path.name + '.py')
    near = f'; nearest: --plugin {shlex.quote(str(file))}' if file.is_file() else ''
    raise errors.UserError(f'--plugin {path}: a plugin is one file called NAME.py{near}')
  try:
    text = path.read_text(encoding='utf-8')
    tree = ast.parse(text)
  except OSError as error:
    raise errors.UserError(f'--plugin {path}: {error.strerror}') from None
  except (SyntaxError, ValueError) as error:
    raise errors.Damaged(path, f'is no Python: {" ".join(str(error).split())[:120]}') from None
  held = kinds.told(path, tree)
  for kind in held:
    _not_own(path, kind)
  return Plugin(held, path, dotted, hashlib.sha256(text.encode()).hexdigest(), kinds.imported(tree))


def _not_own(path, kind):
  """Raises UserError if the project has a module of `kind` of a file's name."""
  own = OWN.joinpath(*kinds.KINDS[kind].split('.')[1:], path.name)
  among = own.parent.with_suffix('.py')                              # of MODULES: a function of this file
  functions = ast.parse(among.read_text(encoding='utf-8')).body if kind in kinds.MODULES else ()
  if own.is_file() or own.with_suffix('').is_dir() or (own.parent / 'wrappers' / own.name).is_file() or any(
      getattr(node, 'name', None) == path.stem for node in functions):
    raise errors.UserError(f'--plugin {path}: there is a module {kinds.KINDS[kind]}.{path.stem} already; '
                           'rename the file and what is called like it')
