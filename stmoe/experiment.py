"""Experiments by name: find, list, load, override, resolve, compare. Imports neither JAX nor TensorFlow.

`switch/base_c4:smoke` is `get_config('smoke')` of `configs/switch/base_c4.py`; the path of any .py file
with a `get_config` is a name too.
"""

import ast
import fnmatch
import hashlib
import importlib
import importlib.util
import json
import pathlib
import re
import shlex
import types
import typing

import ml_collections

from stmoe import errors
from stmoe import explained
from stmoe import lookup
from stmoe import parsing
from stmoe import plugins
from stmoe import sections
from stmoe.plugins import kinds

PACKAGE = 'stmoe.configs'
FEW = 16                                 # fields that a message lists


def folder() -> pathlib.Path:
  """Returns the folder of the experiments: configs/ of a checkout, stmoe/configs of a wheel."""
  spec = importlib.util.find_spec(PACKAGE)
  if spec is None:
    raise errors.UserError('the experiments are not installed; in a checkout run: pip install -e .')
  return pathlib.Path(next(iter(spec.submodule_search_locations or ())))


def available() -> dict[str, str]:
  """Returns dict name -> first line of its docstring, sorted, of every file with a `get_config`.

  Files are parsed, not run.
  """
  first_lines = {}
  for path in sorted(folder().rglob('*.py')):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    if any(isinstance(node, ast.FunctionDef) and node.name == 'get_config' for node in tree.body):
      name = path.relative_to(folder()).with_suffix('').as_posix()
      first_lines[name] = (ast.get_docstring(tree) or '').partition('\n')[0]
  return first_lines


def load(name: str, overrides: typing.Sequence[str] = ()) -> tuple[ml_collections.ConfigDict, str]:
  """Returns (config, canonical name): the locked ConfigDict of an experiment after `overrides`.

  Args:
    name:      'lm/stdlib', 'lm/stdlib:smoke' or a path ending in '.py', with an argument or not.
    overrides: see `override`.
  Raises:
    UserError: for an unknown experiment, argument or field, or a mistyped value.
  """
  where, arg = split(name)
  canonical, module = find_module(where)
  if not hasattr(module, 'get_config'):
    raise errors.UserError(f'{where} defines no get_config(arg){_plugin_of(where)}')
  config = _configured(name, where if where.endswith('.py') else module.__file__, module, arg)
  written = sections.complete(config.lock())
  return override(config, overrides, written=written), canonical + (f':{arg}' if arg else '')


def _configured(name, file, module, arg):
  """The ConfigDict that `get_config` of a module, of a file, returns for an argument."""
  with errors.of_file(file):
    try:
      config = module.get_config(arg)
    except errors.UserError as error:
      raise errors.UserError(f'{name}: {error}') from None
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.UserError(f'{name}: get_config returns a {type(config).__name__}; wanted: a ConfigDict, '
                           'such as that of stmoe.configs.common.config()')
  return config


def _plugin_of(where):
  """'; ...', how the file is named if it is a plugin, else ''."""
  try:
    plugin, typed = plugins.add(where), shlex.quote(where)
  except errors.UserError:
    return ''
  return (f'; it holds {plugin.holds}: stmoe show {plugin.name} --plugin {typed}, or an '
          f'experiment with --plugin {typed}')


def arguments(where: str) -> dict[str, typing.Any]:
  """Returns dict argument -> default of an experiment, without its argument; {} where it declares none.

  The experiment's code runs as far as it reads its argument.
  """
  from stmoe.configs import arguments as declared_arguments
  _, module = find_module(where)
  try:
    module.get_config(declared_arguments.ASKED)
  except declared_arguments.Asked as answer:
    return answer.spec
  except Exception:                      # of the file itself; `load` says it
    pass
  return {}


def split(name: str) -> tuple[str, str]:
  """Returns (name or path, argument) of 'lm/stdlib:smoke' or 'a:b.py:smoke'; '' is no argument."""
  path, suffix, arg = name.rpartition('.py:')
  if suffix or name.endswith('.py'):
    return (path + '.py', arg) if suffix else (name, '')
  where, _, arg = name.partition(':')
  return where, arg


def override(config: ml_collections.ConfigDict, overrides: typing.Sequence[str], whole: bool = True,
             written: set[str] | None = None) -> ml_collections.ConfigDict:
  """Returns `config` after `overrides`, in place, complete and every field within its range.

  Fields that choose others, such as a `name`, are set first, other fields in order. Where another name is
  chosen, the defaults of the old choice go, and the new defaults take their place; explicit values stay.

  Args:
    overrides: texts 'a.b=value' or '--config.a.b=value'.
    whole:     see `sections.check`.
    written:   of a complete configuration, set of the paths that are defaults nobody asked for; None = all
      fields at their defaults.
  """
  if written is None:
    sections.complete(config)
    written = sections.defaults(config)
  choosers = sections.choosers(config) if overrides else {}
  for text in sorted(overrides, key=lambda text: _path(text) not in choosers):
    if _path(text) in choosers:
      _choose(config, choosers[_path(text)], text, written)
      choosers = sections.choosers(config)
    else:
      apply(config, text)
  sections.complete(config)
  sections.check(config, whole)
  return config


def _path(override):
  """The field that the text 'a.b=value' or '--config.a.b=value' sets."""
  return override.removeprefix('--').removeprefix('config.').partition('=')[0]


def _choose(config, group, text, written):
  """Sets the field that decides which others `group` has; new defaults are added to `written`."""
  before = group.values[group.chosen]
  apply(config, text)
  if group.values[group.chosen] == before:
    return
  written.discard(group.where(group.chosen))                         # it is asked for now
  for path in sorted(path for path in written if path.startswith(f'{group.path}.')):
    written.discard(path)
    holder, key = _holder(config, path)
    if key in holder:
      with holder.unlocked():
        del holder[key]
  written |= sections.complete(config)


def find_module(where: str) -> tuple[str, types.ModuleType]:
  """Returns (canonical name, module) of an experiment's name or path, without its argument."""
  if where.endswith('.py'):
    path = pathlib.Path(where)
    if not path.is_file():
      raise errors.UserError(f'no such file: {where}')
    if not path.resolve().is_relative_to(folder().resolve()):
      words = [part for part in path.with_suffix('').parts if part not in ('..', path.anchor)]
      return '/'.join(words), module_of(path)
    where = path.resolve().relative_to(folder().resolve()).with_suffix('').as_posix()
  named = all(re.fullmatch(r'\w+', name) for name in where.split('/'))
  if not named or not (folder() / f'{where}.py').is_file():
    beside = f'; nearest: {where}.py' if pathlib.Path(f'{where}.py').is_file() else ''
    instead = beside or instead_of(where) or errors.nearest(where, available())
    raise errors.UserError(f'no experiment is called {where!r}{instead} (stmoe list shows all)')
  return where, importlib.import_module(f'{PACKAGE}.{where.replace("/", ".")}')


def instead_of(name: str) -> str:
  """Returns '; ...', what to do with a `name` that is no experiment and no folder, or ''."""
  if name.endswith('.gin'):
    return '; gin files are not read, docs/from_t5x.md of the repository has the names of fields'
  if '://' in name:
    return '; addresses are not read: copy what lies there into a folder, and name the folder'
  if found := lookup.kinds_of(name):
    of = ' and of '.join(kinds.PLURALS[kind] for kind in found)
    alike = [other for other in available() if other.endswith(f'/{name}')]
    near = f'; nearest: {", ".join(alike[:3])}' if alike else ''
    return f'{near}; {name} is a name of {of}: stmoe show {name}'
  if re.fullmatch(r'[\w.-]+/[\w.-]+', name) and re.search('[A-Z]', name):
    return (f'; a model of the Hugging Face Hub is downloaded first: '
            f'hf download {name} --local-dir {name.partition("/")[2]}')
  return ''


def module_of(path: pathlib.Path) -> types.ModuleType:
  """Returns the module in the file `path`, whose code runs; UserError if it is no Python."""
  name = re.sub(r'\W', '_', f'{path.parent.name}_{path.stem}')
  spec = importlib.util.spec_from_file_location(name, path, loader=plugins.Text(name, str(path)))
  assert spec is not None and spec.loader is not None                # the file's name ends in .py
  module = importlib.util.module_from_spec(spec)
  with errors.of_file(path):
    try:
      spec.loader.exec_module(module)
    except (SyntaxError, UnicodeDecodeError) as error:
      where = f', line {error.lineno}' if isinstance(error, SyntaxError) and error.lineno else ''
      raise errors.Damaged(path, f'is no Python{where}: {" ".join(str(error).split())[:120]}') from error
  return module


def apply(config: ml_collections.ConfigDict, override: str) -> None:
  """Sets a field of `config` in place from the text 'a.b=value', 'a.b[0]=value'.

  The value is read as the field's range says, where there is one, else as the type of what is there (see
  `parsing.typed`). Fields derived from this field follow.
  Raises UserError, naming the nearest fields, if there is no such field.
  """
  path, equals, text = override.removeprefix('--').removeprefix('config.').partition('=')
  if not equals:
    raise errors.UserError(f'--config.{path} needs a value: --config.{path}=VALUE')
  if not text.isascii() and text != text.encode(errors='replace').decode():
    raise errors.UserError(f'config.{path}={text!r} is not UTF-8')
  field, bracket, index = path.partition('[')
  holder, key = _holder(config, field)
  if key not in holder:                  # a field more, perhaps in a group that has yet to be added
    sections.begin(config, field)
    holder, key = _find(config, field)
  if bracket:
    _set_item(holder[key], path, index.removesuffix(']'), text)
    return
  if isinstance(holder.get(key), ml_collections.ConfigDict):
    inside = ', '.join(f'config.{field}.{name}' for name in holder[key])
    raise errors.UserError(f'config.{path} is a group of fields, set one of: {inside}')
  field_range = sections.range_of(config, field)
  if field_range is None:
    holder[key] = parsing.typed(f'config.{path}', text, holder.get_type(key), holder[key])
    return
  with holder.unlocked(), holder.ignore_type():
    holder[key] = field_range.typed(f'config.{path}', text)


def matching(config: ml_collections.ConfigDict, pattern: str) -> list[str]:
  """Returns the fields of `config` that `pattern` names: one field, or all fields that match its `*`.

  Raises UserError, naming the nearest fields, if there is none.
  """
  pattern = pattern.removeprefix('--').removeprefix('config.')
  if '*' not in pattern:
    _find(config, pattern)
    return [pattern]
  fields = fnmatch.filter(flatten(config), pattern)
  if not fields:
    raise errors.UserError(f'config.{pattern} fits no field{errors.nearest(pattern, flatten(config))}')
  return fields


def _find(config, path):
  """(ConfigDict, key) that hold the field `path` of `config`, or that may hold it."""
  holder, key = _holder(config, path)
  if key not in holder and (sections.field_of(config, path) is None or '.' in key):
    if path == 'data.source':
      raise errors.UserError(f'config.data.source: the fields of {lookup.titled(config.data)} are not those '
                             'of another source; nearest: an experiment of that source, or a file of your '
                             'own with c.data = dict(source=...)')
    names = [*flatten(config), *sections.addable(config, path)]
    raise errors.UserError(f'config.{path} does not exist{_nearest(names, path)}'
                           f'{_has(config, path)}')
  return holder, key


def _has(config, path):
  """' (router 'switch' has: ...)', the fields of the module that should have the field `path`, else ''.

  Before it stands which other modules have the field.

  Raises UserError if that module has a name that nobody knows.
  """
  group = next((group for group in sections.groups(config) if group.path == path.rpartition('.')[0]), None)
  if group is None or not group.chosen:
    return ''
  if group.open:
    group.fields[group.chosen].range.check(group.where(group.chosen), group.values.get(group.chosen))
  own = f' ({group.title} has: {", ".join(group.fields)})' if len(group.fields) < FEW else ''
  return explained.where_else(group, path.rpartition('.')[2]) + own


def _nearest(names, path):
  """'; nearest: a, b' of the fields `names` that `path` may mean, shortened or of other codebases."""
  last = path.rpartition('.')[2]
  meant = ([name for name in names if name.endswith(f'.{path}')]
           or [name for name in names if name in explained.ELSEWHERE.get(last, ())])
  if meant:
    return f'; nearest: {", ".join(f"config.{name}" for name in meant[:3])}'
  return errors.nearest(f'config.{path}', [f'config.{name}' for name in names])


def known_words() -> dict[str, str]:
  """Returns dict word -> field that it may mean: the last part of its path, or what others call it."""
  own = {key: f'{section}.{key}' for section, keys in reversed(sections.TABLES.items()) for key in keys}
  of_texts = {key: f'decode.{key}' for fields in lookup.known_fields('strategy').values() for key in fields}
  return of_texts | own | {key: meant[0] for key, meant in explained.ELSEWHERE.items()}


def _holder(config, path):
  """(the innermost ConfigDict of `config` on the way to the field `path`, what of the path is left)."""
  holder, key = config, path
  while key not in holder:
    group, dot, below = key.partition('.')
    if not dot or not isinstance(holder.get(group), ml_collections.ConfigDict):
      break
    holder, key = holder[group], below
  return holder, key


def _set_item(items, path, index, text):
  """Sets an item of the list `items` in place."""
  if not isinstance(items, list):
    raise errors.UserError(f'config.{path}: only an item of a list can be set, give the {_kind(items)} whole')
  if not index.isdecimal() or int(index) >= len(items):
    raise errors.UserError(f'config.{path}: there is no item {index}; the list has {len(items)}')
  position = int(index)
  items[position] = parsing.typed(f'config.{path}', text, type(items[position]), items[position])


def _kind(value):
  return type(value).__name__


def flatten(config: typing.Any) -> dict[str, typing.Any]:
  """Returns dict 'a.b' -> value of every field of `config` that is not a group of fields."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict) and len(value):
      flat.update({f'{key}.{name}': inner for name, inner in flatten(value).items()})
    else:
      flat[key] = {} if isinstance(value, ml_collections.ConfigDict) else value
  return flat


def to_json(config: ml_collections.ConfigDict, indent: int | None = 2) -> str:
  """Returns the resolved `config` as JSON with sorted keys; tuples become lists."""
  return json.dumps(config.to_dict(), indent=indent, sort_keys=True)


def run_id(config: ml_collections.ConfigDict) -> str:
  """Returns the SHA-1, 40 hex digits, of the sorted JSON of `config`: equal for equal configurations."""
  return hashlib.sha1(to_json(config, indent=None).encode()).hexdigest()


def default_workdir(name: str) -> str:
  """Returns 'runs/lm_stdlib_smoke' for 'lm/stdlib:smoke'."""
  return f'runs/{re.sub(r"[/:]", "_", name)}'


def run_directory(run: str) -> pathlib.Path:
  """Returns the Path of a run that the user names by its directory or its experiment."""
  path = pathlib.Path(run)
  if path.is_dir():
    return path
  if names_one(run):
    return pathlib.Path(default_workdir(load(run)[1]))
  raise unknown_name(run)


def names_one(name: str) -> bool:
  """Returns whether `name` is that of an experiment, with an argument or not, or of a .py file."""
  where = split(name)[0]
  return where.endswith('.py') or (folder() / f'{where}.py').is_file()


def unknown_name(name: str, others: typing.Iterable[str] = ()) -> errors.UserError:
  """Returns the error about a `name` that is no run directory and no experiment, with what is nearest.

  others: names that are meant as well.
  """
  path, where = pathlib.Path(name), split(name)[0]
  inside = [str(file.parent) for file in sorted(path.glob('[!.]*/config.json'))]
  if path.is_dir():
    near = f'; nearest: {", ".join(inside[:3])}' if inside else ''
    return errors.UserError(f'{name} is a folder, but no run directory and no downloaded model: it has no '
                            f'config.json{near}')
  runs = [str(file.parent) for file in path.parent.glob('[!.]*/config.json')]
  beside = f'; nearest: {where}.py' if pathlib.Path(f'{where}.py').is_file() else ''
  instead = (beside or errors.nearest(name, runs) or instead_of(name)
             or errors.nearest(where, [*others, *available()]))
  return errors.UserError(f'no run directory and no experiment is called {name!r}'
                          f'{instead or " (stmoe list shows all experiments)"}')


MISSING = '(absent)'


def diff(left: ml_collections.ConfigDict, right: ml_collections.ConfigDict) -> dict[str, tuple]:
  """Returns dict field -> (value in left, value in right) where two configurations differ.

  A field that one configuration lacks is MISSING there.
  """
  left, right = flatten(left), flatten(right)
  pairs = {key: (left.get(key, MISSING), right.get(key, MISSING)) for key in sorted({*left, *right})}
  return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
