"""Files outside of this project that hold a router, experts, an executor, a layer, a target or tasks.

A plugin is code. It runs as soon as a configuration names what it holds: name no plugin that you did not
read. `--plugin FILE` of any command names a file, and so does $STMOE_PLUGINS, in which several stand like the
folders of $PATH. An installed package names its modules in the entry-point group `stmoe.plugins`:
`my_router = my_package.my_router`.

The file's name is the name of what it holds, as of the project's own files. What it holds is told by the
file's text: a top-level `TASKS` or function `execute`, or the class called like the file.
"""

import ast
import functools
import hashlib
import importlib
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

VARIABLE, GROUP = 'STMOE_PLUGINS', 'stmoe.plugins'
OWN = pathlib.Path(__file__).parent
# What a plugin may hold -> the package in which such files of the project lie.
KINDS = {'router': 'stmoe.routers', 'layer': 'stmoe.layers', 'experts': 'stmoe.experts',
         'executor': 'stmoe.core.execute', 'target': 'stmoe.targets', 'tasks': 'stmoe.data.text.families'}
WANTED = ('wanted: TASKS = {...}, a function execute, or a class called like the file: a router '
          '(x, ctx, carry) -> Routed, a layer (x, ctx, carry) -> Answer, experts (rows, key), or a target')
SEQIO = "seqio's registry is not read: docs/from_t5x.md writes its tasks as JSON lines"


class Plugin(typing.NamedTuple):
  """A file of somebody else: what it holds (a key of KINDS), its path, and its module if it is installed.

  sha256: of its text when it was read.
  """
  kind: str
  path: pathlib.Path
  module: str | None
  sha256: str

  @property
  def name(self) -> str:
    """Returns what a configuration calls it."""
    return self.path.stem


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
  if earlier and earlier != _of_file(path, earlier.module):
    sys.modules.pop(f'{KINDS[earlier.kind]}.{earlier.name}', None)
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
  return {plugin.name: plugin.path for plugin in known() if KINDS[plugin.kind] == package}


def module(package: str, name: str) -> types.ModuleType | None:
  """Returns the module of plugin `name` beside those of `package`, whose code runs; None if there is none."""
  plugin = next((p for p in known() if KINDS[p.kind] == package and p.name == name), None)
  if plugin is None:
    return None
  if plugin.module:
    return importlib.import_module(plugin.module)
  dotted = f'{package}.{name}'
  if dotted not in sys.modules:
    spec = importlib.util.spec_from_file_location(dotted, plugin.path,
                                                  loader=Text(dotted, str(plugin.path)))
    assert spec is not None and spec.loader is not None              # the file's name ends in .py
    sys.modules[dotted] = importlib.util.module_from_spec(spec)
    try:
      with errors.of_file(plugin.path):
        spec.loader.exec_module(sys.modules[dotted])
    except errors.UserError:
      del sys.modules[dotted]
      raise
  return sys.modules[dotted]


@functools.cache
def _known(listed: str) -> tuple[Plugin, ...]:
  """The plugins in the files of `listed`, and the installed ones."""
  named = [_of_file(pathlib.Path(text).absolute()) for text in listed.split(os.pathsep) if text]
  found: dict[tuple, Plugin] = {}
  for plugin in (*named, *_installed()):
    other = found.setdefault((plugin.kind, plugin.name), plugin)
    if other.path.resolve() != plugin.path.resolve():
      raise errors.UserError(f'plugins {other.path} and {plugin.path} both hold the {plugin.kind} '
                             f'{plugin.name!r}; rename a file and its class')
  return tuple(found.values())


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
  kind = _kind(path, tree)
  own = OWN.joinpath(*KINDS[kind].split('.')[1:], path.name)
  if own.is_file() or own.with_suffix('').is_dir() or (own.parent / 'wrappers' / own.name).is_file():
    raise errors.UserError(f'--plugin {path}: there is a module {KINDS[kind]}.{path.stem} already; rename '
                           'the file and its class')
  return Plugin(kind, path, dotted, hashlib.sha256(text.encode()).hexdigest())


def _kind(path, tree):
  """What a file holds: a key of KINDS, told by its text."""
  names = {target.id for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))
           for target in getattr(node, 'targets', [getattr(node, 'target', None)])
           if isinstance(target, ast.Name)}
  if 'TASKS' in names:
    return 'tasks'
  if any(isinstance(node, ast.FunctionDef) and node.name == 'execute' for node in tree.body):
    return 'executor'
  plain = path.stem.replace('_', '').lower()
  classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
  found = next((node for node in classes if node.name.lower() == plain), None)
  if found is None:
    called = ''.join(word.title() for word in path.stem.split('_'))
    there = ', '.join(node.name for node in classes)
    rename = f'; nearest: call {there} {called}, or the file after the class' if len(classes) == 1 else ''
    registry = any(getattr(node, 'attr', '') == 'TaskRegistry' for node in ast.walk(tree))
    seqio = f'; {SEQIO}' if registry else ''
    raise errors.UserError(f'{path} holds nothing that is called like it{rename}{seqio}; {WANTED} '
                           f'(classes: {there or "none"})')
  return _extended(tree, found) or _kind_of_class(path, found)


def _extended(tree, found):
  """The kind of a class that extends one of the project's, told by where that is imported from, or None."""
  imports = {alias.asname or alias.name: f'{node.module}.' for node in tree.body
             if isinstance(node, ast.ImportFrom) for alias in node.names}
  homes = [imports.get(ast.unparse(base).partition('.')[0], '') for base in found.bases]
  return next((kind for kind, package in KINDS.items() for home in homes if home.startswith(f'{package}.')),
              None)


def _kind_of_class(path, found):
  methods = {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}
  if {'loss', 'judge', 'metrics'} <= set(methods):
    return 'target'
  call = methods.get('__call__')
  arguments = [argument.arg for argument in call.args.args[1:]] if call else []
  if arguments[:1] == ['rows']:
    return 'experts'
  if call and arguments == ['x', 'ctx', 'carry']:
    told = ast.unparse(call.returns) if call.returns else ''
    if told.endswith('Answer'):
      return 'layer'
    words = {getattr(node, 'attr', getattr(node, 'id', None)) for node in ast.walk(found)}
    return 'router' if told.endswith('Routed') or 'Routed' in words else 'layer'
  raise errors.UserError(f'{path}: nothing tells what {found.name} is; {WANTED}')
