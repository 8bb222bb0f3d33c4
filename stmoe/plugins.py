"""Files outside of this project that hold what files of its folders hold: routers, experts, metrics, ...

A plugin is code. It runs as soon as a configuration names what it holds: name no plugin that you did not
read. `--plugin FILE` of any command names a file, and so does $STMOE_PLUGINS, in which several stand like the
folders of $PATH. An installed package names its modules in the entry-point group `stmoe.plugins`:
`my_router = my_package.my_router`.

The file's name is the name of what it holds, as of the project's own files. What it holds is told by the
file's text: by what stands at its top (`AT_TOP`), and by the class called like the file. A file may hold
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

VARIABLE, GROUP = 'STMOE_PLUGINS', 'stmoe.plugins'
OWN = pathlib.Path(__file__).parent
# The key of a configuration under which a module is named -> the package it lives in.
PACKAGES = {
    'model': 'stmoe.models',
    'layer': 'stmoe.layers',
    'mixer': 'stmoe.mixers',         # of the model multi_task: the experts of several tasks
    'attention': 'stmoe.attention',
    'around': 'stmoe.parts.around',  # blocks: what they stand in
    'adapter': 'stmoe.parts.adapters',   # of models: what stands beside their matrices
    'rotary_scaling': 'stmoe.parts.rotary_scaling',   # of rotary positions, for longer texts
    'network': 'stmoe.parts.networks',    # over the nodes of graphs
    'head': 'stmoe.heads',           # of models whose predictions are no tokens
    'target': 'stmoe.targets',       # what a model is to predict: section loss
    'router': 'stmoe.routers',
    'experts': 'stmoe.experts',
    'virtual': 'stmoe.experts.virtual',   # experts without a bank: a tuple of names
    'executor': 'stmoe.core.execute',
    'strategy': 'stmoe.decode.strategies',
    'source': 'stmoe.data.sources',
    'objective': 'stmoe.data.text.objectives',   # of a source of texts
    'tasks': 'stmoe.data.text.families',   # of a source of texts: files of tasks
    'metric': 'stmoe.metrics',
    'family': 'stmoe.interop.families',   # of checkpoints made elsewhere
    'packing': 'stmoe.interop.packings',  # of their tensors in fewer bits
    'positions': 'stmoe.interop.positions',   # types of rotary positions in checkpoints made elsewhere
    'writer': 'stmoe.runs.writers',   # of metrics to a service: log.writers
    'peer': 'stmoe.bench.peers',   # other libraries to time
    'piece': 'stmoe.bench.device.pieces',   # of the accelerator kit: what to measure
    'surgery': 'stmoe.surgery',      # on trained parameters
    'factorisation': 'stmoe.surgery',   # surgeries that make a dense model sparse
    'adaptation': 'stmoe.surgery',      # put adapters beside parameters, which stay as they are
    'law': 'stmoe.analysis.scaling.laws',   # of the loss against size, tokens and experts
    'launcher': 'stmoe.sweep.launchers',
    'figure': 'stmoe.analysis.figures',   # that a single method has
}
# Sections of a configuration that name a function -> the module in which such functions stand together.
MODULES = {'optimizer': 'stmoe.train.optimizers', 'schedule': 'stmoe.train.schedules'}
KINDS = PACKAGES | MODULES           # what a plugin may hold
# Kinds that are told by names at the top of a file, and by the arguments of the functions among them.
AT_TOP: dict[str, dict[str, list[str] | None]] = {
    'tasks': dict(TASKS=None),
    'executor': dict(execute=['x', 'a', 'experts', 'key']),
    'surgery': dict(operate=['params', 'config', 'calibration']),
    'factorisation': dict(factorise=['params', 'config', 'calibration']),
    'adaptation': dict(adapt=['config']),
    'metric': dict(score=['examples', 'predictions']),
    'family': dict(ARCHITECTURE=None, configure=['hf', 'tied'], describe=['c']),
    'packing': dict(unpacked=['tensors', 'section']),
    'positions': dict(configure=['hf', 'given'], describe=['scaling', 'logits']),
    'peer': dict(variant=['problem', 'floor'], missing=[]),
    'piece': dict(jobs=['dry']),
    'law': dict(COEFFICIENTS=None, predict=['coefficients', 'table']),
    'launcher': dict(launch=['runs', 'board']),
    'figure': dict(CAPTIONS=None, draw=['run']),
}
# Kinds of classes -> methods that tell them, and what an object is called with, None = whatever.
OF_CLASS: dict[str, tuple[set[str], list[str] | None]] = {
    'target': ({'loss', 'judge', 'metrics'}, None),
    'source': ({'shapes', 'open', 'lengths'}, None),
    'writer': ({'write', 'finish', 'close'}, None),
    'model': ({'stacks', 'count_tokens'}, None),
    'adapter': ({'attach'}, None),
    'objective': ({'example'}, None),
    'experts': (set(), ['rows']),
    'strategy': (set(), ['model', 'batch', 'length', 'key']),
    'network': (set(), ['x', 'graph', 'ctx']),
    'mixer': (set(), ['x', 'ctx']),
    'rotary_scaling': (set(), ['rate', 'base', 'length']),
    'virtual': (set(), ['x']),
}
SUB_LAYER = ['x', 'ctx', 'carry']    # what layers, attention, heads and routers are called with
# Classes of the project that tell the kind of what extends them; else the folder of such a class tells it.
BASES = {'stmoe.parts.block.Around': 'around', 'stmoe.parts.graph.Network': 'network'}
# Functions called like their file, by their first arguments.
OF_FUNCTION = {'optimizer': ['names', 'shapes'], 'schedule': ['step']}
SAID = 'PLUGIN'                      # at the top of a file: the kind of its class, where nothing else tells
WANTED = ('wanted: a class called like the file, such as a router (x, ctx, carry) -> Routed, or TASKS = {...}'
          ', or a function such as execute, score or operate; CONTRIBUTING.md has all kinds')
OR_SAID = "; where the text leaves open what a class is, a line says it: PLUGIN = 'head'"
SEQIO = "seqio's registry is not read: docs/from_t5x.md writes its tasks as JSON lines"


class Plugin(typing.NamedTuple):
  """A file of somebody else: what it holds (keys of KINDS), its path, and its module if it is installed.

  sha256: of its text when it was read.
  """
  kinds: tuple[str, ...]
  path: pathlib.Path
  module: str | None
  sha256: str

  @property
  def name(self) -> str:
    """Returns what a configuration calls it."""
    return self.path.stem

  @property
  def packages(self) -> list[str]:
    """Returns the packages of the project beside whose modules it stands."""
    return list(dict.fromkeys(KINDS[kind] for kind in self.kinds))

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
    for package in {*present.packages, *(earlier.packages if earlier else ())}:
      sys.modules.pop(f'{package}.{present.name}', None)
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
  if dotted not in sys.modules and (loaded := _loaded(plugin)):
    sys.modules[dotted] = loaded         # a file of several kinds is one module
  if dotted not in sys.modules:
    spec = _spec(plugin, dotted)
    try:
      with errors.of_file(plugin.path):
        sys.modules[dotted] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[dotted])
    except errors.UserError:
      sys.modules.pop(dotted, None)
      raise
  return sys.modules[dotted]


def blamed(error: BaseException) -> str:
  """Returns 'FILE, line N: KIND: TEXT' of an error that the code of a plugin met; '' of any other error."""
  return errors.placed(error, [plugin.path for plugin in known()])


def _loaded(plugin):
  """The module of a plugin that was loaded for another of its kinds, or None."""
  places = (sys.modules.get(f'{package}.{plugin.name}') for package in plugin.packages)
  return next((place for place in places if place is not None), None)


def _spec(plugin, dotted):
  """The spec by which Python makes the module `dotted` of a plugin."""
  return importlib.util.spec_from_file_location(dotted, plugin.path, loader=Text(dotted, str(plugin.path)))


class Finder(importlib.abc.MetaPathFinder):
  """Lets Python's `import` find plugins in the packages of their kinds: plugins import one another."""

  @staticmethod
  def find_spec(fullname, path=None, target=None):
    """Returns the spec of a plugin, or None for every other module."""
    package, _, name = fullname.rpartition('.')
    if package in KINDS.values() and VARIABLE in os.environ:
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
  kinds = _kinds(path, tree)
  for kind in kinds:
    _not_own(path, kind)
  return Plugin(kinds, path, dotted, hashlib.sha256(text.encode()).hexdigest())


def _not_own(path, kind):
  """Raises UserError if the project has a module of `kind` of a file's name."""
  own = OWN.joinpath(*KINDS[kind].split('.')[1:], path.name)
  among = own.parent.with_suffix('.py')                              # of MODULES: a function of this file
  functions = ast.parse(among.read_text(encoding='utf-8')).body if kind in MODULES else ()
  if own.is_file() or own.with_suffix('').is_dir() or (own.parent / 'wrappers' / own.name).is_file() or any(
      getattr(node, 'name', None) == path.stem for node in functions):
    raise errors.UserError(f'--plugin {path}: there is a module {KINDS[kind]}.{path.stem} already; rename '
                           'the file and what is called like it')


def _kinds(path, tree):
  """What a file holds: keys of KINDS, told by its text."""
  values = {target.id: node.value for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))
            for target in getattr(node, 'targets', [getattr(node, 'target', None)])
            if isinstance(target, ast.Name)}
  functions = {node.name: _arguments(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
  kinds = [kind for kind, names in AT_TOP.items()
           if all(name in functions and functions[name][:len(wanted)] == wanted if wanted is not None else
                  name in values for name, wanted in names.items())]
  kinds += [kind for kind, wanted in OF_FUNCTION.items()
            if functions.get(path.stem, [])[:len(wanted)] == wanted]
  kind = _kind_of_class(path, tree, values.get(SAID))
  kinds += [kind] if kind and kind not in kinds else []
  if not kinds:
    raise errors.UserError(f'{path} {_nothing(path, tree, functions)}; {WANTED}')
  return tuple(kinds)


def _arguments(function):
  """The names of the arguments of a function that are no fields."""
  return [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]


def _nothing(path, tree, functions):
  """Why a file is told to hold nothing."""
  for kind, names in AT_TOP.items():
    for name, wanted in names.items():
      if name in functions and wanted and functions[name][:len(wanted)] != wanted:
        return (f'has {name}({", ".join(functions[name])}); wanted of the kind {kind}: '
                f'{name}({", ".join(wanted)}, ...)')
  classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
  if _called_like(path, tree):
    return f'does not tell what {_called_like(path, tree).name} is{OR_SAID}'
  called = ''.join(word.title() for word in path.stem.split('_'))
  rename = f'; nearest: call {classes[0]} {called}, or the file after the class' if len(classes) == 1 else ''
  registry = any(getattr(node, 'attr', '') == 'TaskRegistry' for node in ast.walk(tree))
  return (f'holds nothing that is called like it{rename}{f"; {SEQIO}" if registry else ""} '
          f'(classes: {", ".join(classes) or "none"})')


def _called_like(path, tree):
  """The class of a file that is called like the file, or None."""
  plain = path.stem.replace('_', '').lower()
  return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.lower() == plain),
              None)


def _kind_of_class(path, tree, said):
  """The kind of the class called like the file: as PLUGIN says, or by what it extends, has and takes."""
  if said is not None:
    kind = getattr(said, 'value', None)
    if kind not in KINDS:
      raise errors.UserError(f'{path}, line {said.lineno}: {SAID}={ast.unparse(said)}'
                             f'{errors.nearest(kind, KINDS)} (there are: {", ".join(KINDS)})')
    return kind
  found = _called_like(path, tree)
  return found and (_extended(tree, found) or _told(found))


def _extended(tree, found):
  """The kind of a class that extends one of the project's, told by where that is imported from, or None."""
  imports = {alias.asname or alias.name: f'{node.module}.{alias.name}' for node in tree.body
             if isinstance(node, ast.ImportFrom) for alias in node.names}
  bases = []
  for base in found.bases:
    head, dot, rest = ast.unparse(base).partition('.')
    bases.append(imports.get(head, head) + dot + rest)
  said = (BASES.get(base) for base in bases)
  homes = (kind for kind, package in PACKAGES.items() for base in bases if base.startswith(f'{package}.'))
  return next((kind for kind in (*said, *homes) if kind), None)


def _told(found):
  """The kind of a class by its methods and by what it is called with, or None."""
  methods = {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}
  call = methods.get('__call__')
  arguments = _arguments(call)[1:] if call else []
  for kind, (names, called_with) in OF_CLASS.items():
    if names <= set(methods) and (called_with is None or arguments[:1] == called_with == ['rows']
                                  or arguments == called_with):
      return kind
  return _sub_layer(found, call) if arguments == SUB_LAYER else None


def _sub_layer(found, call):
  """The kind of a class of what is called with (x, ctx, carry)."""
  told = ast.unparse(call.returns) if call.returns else ''
  if told.endswith('Answer'):
    words = {ast.unparse(node) for node in ast.walk(found) if isinstance(node, ast.Attribute)}
    return 'attention' if 'ctx.visible' in words else 'layer'
  words = {getattr(node, 'attr', getattr(node, 'id', None)) for node in ast.walk(found)}
  return 'router' if told.endswith('Routed') or 'Routed' in words else 'layer'
