"""What the files of this project declare, read from their text without importing them.

Fields are the keyword-only parameters, or the annotated names of a dataclass; their annotations are the
ranges of `ranges.py`, or Python's float, int, bool and str. A class also has what it inherits from classes
of this project or of its own file. So a configuration is checked in milliseconds, where importing what it
names would import JAX.
"""

import ast
import functools
import pathlib
import sys
import threading
import typing
from typing import NamedTuple

from stmoe import errors
from stmoe import plugins
from stmoe import ranges

ROOT = pathlib.Path(__file__).parent
REQUIRED = object()                  # in place of a default
COMPUTED = object()                  # a default that is no literal
OPTIONAL = object()                  # no default: the field may be absent, and then nothing is meant
UNWRITTEN = object()
_PARSING = threading.Lock()           # Python's parser counts one depth for all threads together


class Field(NamedTuple):
  """A field: its range, None without an annotation, and its default."""
  range: typing.Any                  # a `ranges.Range`, which a type checker takes for a type of values
  default: object = REQUIRED

  @property
  def written(self) -> object:
    """Returns what a configuration has in this field where nothing is said; UNWRITTEN if that is nothing."""
    if self.range is None:               # the builder of the object gives it
      return UNWRITTEN
    if self.range.usual is not None:
      return {'name': self.range.usual}
    return UNWRITTEN if self.default in (REQUIRED, COMPUTED, OPTIONAL) else self.default


@functools.cache
def _own(package):
  """The folder of a package itself."""
  return str(ROOT.joinpath(*package.split('.')[1:]))


def folders(package):
  """Returns the folders of a package: its own, and other folders on its `__path__` where it is imported."""
  extended = getattr(sys.modules.get(package), '__path__', ())
  return list(map(pathlib.Path, extended or [_own(package)]))


def steady(function):
  """Returns `function(package, ...)`, whose results are kept where the package has its own folder alone.

  A configuration asks for the same files hundreds of times. Other folders may change while a process runs,
  and other plugins are other files. Where the first argument is a tuple of packages, this holds for each.
  """
  cached = functools.cache(lambda plugged, *arguments: function(*arguments))

  @functools.wraps(function)
  def call(package, *rest):
    if any(map(_extended, (package,) if isinstance(package, str) else package)):
      return function(package, *rest)
    return cached(plugins.known(), package, *rest)
  return call


def _extended(package):
  """Whether a package has other folders than its own."""
  return list(getattr(sys.modules.get(package), '__path__', ())) not in ([], [_own(package)])


@steady
def names(package):
  """Returns the set of the names of a package's modules that begin with no underscore, plugins included."""
  return {*plugins.files(package), *(path.stem for folder in folders(package)
                                     for path in folder.glob('[!_]*.py'))}


@steady
def file(package, name):
  """Returns the file of module `name` of a package: ('stmoe.routers', 'switch') -> .../routers/switch.py."""
  files = [folder / f'{name}.py' for folder in folders(package)]
  if plugin := plugins.files(package).get(name):
    files.append(plugin)
  return next((path for path in files if path.is_file()), files[0])


@steady
def exists(package, name):
  """Returns whether a package has a module `name`."""
  return file(package, name).is_file()


@steady
def of_class(package, name):
  """Returns dict field -> Field of the class called like its file, or None if the file has no such class."""
  path = file(package, name)
  node = _class(path)
  return node and _of_class(path, node)


def _of_class(path, node):
  """Dict field -> Field of a class in file `path`; None of a class without constructor."""
  init = _method(path, node, '__init__')
  if node.decorator_list and not (init and init[1] in node.body):
    return _annotated(path, node)
  return _fields(*init) if init else None


@steady
def called_with(package, name, function=None):
  """Returns the names of the arguments with which an object of the class called like its file is called.

  function: name of a function whose arguments are meant instead. None without such a class or function.
  """
  if function:
    found = next((node for node in _functions(file(package, name)) if node.name == function), None)
    return found and [argument.arg for argument in found.args.args]
  call = _called(package, name, '__call__')
  return call and [argument.arg for argument in call[1].args.args[1:]]


def has_method(package: str, name: str, method: str) -> bool:
  """Returns whether the class called like its file has a method called `method`."""
  return _called(package, name, method) is not None


def functions(module):
  """Returns dict name -> (file, function) of the public functions of a module that have fields.

  `module` is dotted: 'stmoe.train.schedules'. Plugins beside its functions count: one called like its file.
  """
  path = file(*module.rpartition('.')[::2])
  found = {node.name: (path, node) for node in _functions(path)
           if not node.name.startswith('_') and node.args.kwonlyargs}
  return found | {name: (plugin, node) for name, plugin in plugins.files(module).items()
                  for node in _functions(plugin) if node.name == name}


def _functions(path):
  return [node for node in _tree(path).body if isinstance(node, ast.FunctionDef)]


def of_functions(module):
  """Returns dict name -> dict field -> Field of what `functions` returns."""
  return {name: _fields(*place) for name, place in functions(module).items()}


def of_function(package, name, function):
  """Returns dict field -> Field of a function of module `name` of a package; {} if it has none."""
  return of_functions(f'{package}.{name}').get(function, {})


def tree(package, name):
  """Returns the parsed text of module `name` of a package."""
  return _tree(file(package, name))


def _tree(path):
  return _parsed(path, next((plugin.sha256 for plugin in plugins.known() if plugin.path == path), None))


@functools.cache
def _parsed(path, sha256):
  """The tree of a file; sha256: of the text of a plugin, which may be read again."""
  del sha256
  try:
    with _PARSING:
      return ast.parse(path.read_text(encoding='utf-8'))
  except SyntaxError as error:
    raise errors.UserError(f'{path}, line {error.lineno}: {error.msg}') from None


def _class(path):
  """The class of a file that is called like the file, cases and underscores aside, or None."""
  plain_name = path.stem.replace('_', '').lower()
  classes = [node for node in _tree(path).body if isinstance(node, ast.ClassDef)]
  return next((node for node in classes if node.name.lower() == plain_name), None)


def _called(package, name, method):
  """(file, function) of a method of the class called like its file, or None."""
  path = file(package, name)
  node = _class(path)
  return node and _method(path, node, method)


def _method(path, found, name):
  """(file, function) of a method that a class in file `path` has or inherits, or None."""
  own = next((node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
  if own:
    return path, own
  return next(filter(None, (_method(*base, name) for base in _bases(path, found))), None)


def _bases(path, found):
  """Yields (file, class) of the classes, of this project or of the file `path`, that a class extends."""
  for base in found.bases:
    head, _, rest = ast.unparse(base).partition('.')
    module, _, name = '.'.join(filter(None, (_imports(path).get(head, head), rest))).rpartition('.')
    if module and not module.startswith(f'{ROOT.name}.'):
      continue
    home = file(*module.rpartition('.')[::2]) if module else path
    home = home if home.is_file() else home.with_suffix('') / '__init__.py'
    if home.is_file():
      yield from ((home, node) for node in _tree(home).body
                  if isinstance(node, ast.ClassDef) and node.name == name and node is not found)


@functools.cache
def _fields(path, function):
  """Dict field -> Field of the keyword-only parameters of a function, without `rngs`."""
  pairs = zip(function.args.kwonlyargs, function.args.kw_defaults)
  return {argument.arg: Field(_range(path, argument.arg, argument.annotation), _default(default))
          for argument, default in pairs if argument.arg != 'rngs'}


@functools.cache
def _annotated(path, found):
  """Dict field -> Field of the annotated names of a dataclass, and of the classes that it extends."""
  fields: dict[str, Field] = {}
  for base in _bases(path, found):
    fields |= _of_class(*base) or {}
  return fields | {node.target.id: Field(_range(path, node.target.id, node.annotation), _default(node.value))
                   for node in found.body if isinstance(node, ast.AnnAssign)}


def _default(node):
  if node is None:
    return REQUIRED
  try:
    return ast.literal_eval(node)
  except ValueError:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
      return ast.literal_eval(node.left) / ast.literal_eval(node.right)               # 1 / 3
    return COMPUTED


def _range(path, field, node):
  """The range that the annotation of a field means, None without one; raises UserError for another one."""
  if node is None:
    return None
  try:
    found = _evaluate(path, node)
  except (TypeError, ValueError, AttributeError, OSError):
    found = None
  if not isinstance(found, ranges.Range):
    raise errors.UserError(f'{path}, line {node.lineno}: {field}: {ast.unparse(node)} is no range; wanted: '
                           'one of stmoe.ranges, such as ranges.Count or ranges.Choice("a", "b"), or float, '
                           'int, bool, str; each may be followed by | None')
  return found


def _evaluate(path, node):
  """What an annotation in file `path` means: a range, a constant, or the names of a table."""
  inner = functools.partial(_evaluate, path)
  if isinstance(node, (ast.Constant, ast.UnaryOp)):                  # a number may be below 0
    return ast.literal_eval(node)
  if isinstance(node, ast.Name):
    return ranges.PLAIN.get(node.id) or _names(path, node.id)
  if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
    module = _imports(path).get(node.value.id, '')
    if module == ranges.__name__:
      return getattr(ranges, node.attr)
    return _names(file(*module.rpartition('.')[::2]), node.attr)
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    return inner(node.left) | inner(node.right)
  if isinstance(node, ast.Call):
    arguments = []
    for argument in node.args:
      arguments += inner(argument.value) if isinstance(argument, ast.Starred) else [inner(argument)]
    return inner(node.func)(*arguments, **{argument.arg: inner(argument.value) for argument in node.keywords})
  raise TypeError('an annotation is made of stmoe.ranges, names of tables and |')


def _names(path, table):
  """The keys of a table at the top of a file, `TABLE = {...}` or `dict(...)`, or the items of a tuple.

  The table may have a type: `TABLE: dict[str, Callable] = {...}`.
  """
  for node in _tree(path).body:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
    if [getattr(target, 'id', None) for target in targets] == [table]:
      if isinstance(node.value, ast.Dict):
        return [ast.literal_eval(key) for key in node.value.keys]
      if isinstance(node.value, ast.Call):
        return [keyword.arg for keyword in node.value.keywords]
      return list(ast.literal_eval(node.value))
  raise TypeError(f'{path}: there is no table {table}')


def _imports(path):
  """Dict name in a file -> dotted module, of what it imports with `from`."""
  return {alias.asname or alias.name: f'{node.module}.{alias.name}' for node in _tree(path).body
          if isinstance(node, ast.ImportFrom) for alias in node.names}
