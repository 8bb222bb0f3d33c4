"""The file name is the registry: names in a configuration are module names.

`dict(name='switch', num_experts=8)` under the key `router` means the class `Switch`
of `stmoe/routers/switch.py`, called with `num_experts=8`. A class is found by its
file: `st_moe.py` holds `STMoE`, `mlp.py` holds `Mlp` (case and underscores ignored).
"""

import functools
import importlib
import importlib.util
import inspect
import pkgutil

from stmoe import errors
from stmoe import parsing

# The key of a configuration under which a module is named -> the package it lives in.
PACKAGES = {
    'model': 'stmoe.models',
    'layer': 'stmoe.layers',
    'attention': 'stmoe.layers',
    'head': 'stmoe.layers',           # of models whose predictions are no tokens
    'router': 'stmoe.routers',
    'experts': 'stmoe.experts',
    'virtual': 'stmoe.experts.virtual',   # experts without a bank: a tuple of names
    'executor': 'stmoe.core.execute',
    'strategy': 'stmoe.decode.strategies',
    'metric': 'stmoe.metrics',
    'family': 'stmoe.interop.families',   # of checkpoints made elsewhere
    'peer': 'stmoe.analysis.peers',   # other libraries to time
    'law': 'stmoe.analysis.scaling.laws',   # of the loss against size, tokens and experts
    'launcher': 'stmoe.sweep.launchers',
}


def available(kind):
  """Returns the sorted names of the modules of `kind` (a key of PACKAGES)."""
  return _files(PACKAGES[kind])


def wrappers(kind):
  """Returns the sorted names of those of `kind` that wrap another one, their `inner`: a folder of its own."""
  package = f'{PACKAGES[kind]}.wrappers'
  return _files(package) if importlib.util.find_spec(package) else []


def _files(package):
  found = pkgutil.iter_modules(importlib.import_module(package).__path__)
  return sorted(m.name for m in found if not m.ispkg)


def module(kind, name):
  """Returns the module called `name` among those of `kind`, and those of them that wrap.

  Raises UserError, naming the nearest modules, when there is none, and for a file that is no Python.
  """
  package = PACKAGES[kind]
  if name in available(kind):
    return _imported(f'{package}.{name}')
  if name in wrappers(kind):
    return _imported(f'{package}.wrappers.{name}')
  known = available(kind) + wrappers(kind)
  raise errors.UserError(f'no {kind} is called {name!r}{errors.nearest(name, known)}'
                         f' (there are: {", ".join(known)})')


def _imported(name):
  try:
    return importlib.import_module(name)
  except SyntaxError as error:
    raise errors.UserError(f'{error.filename}, line {error.lineno}: {error.msg}') from None


def constructor(kind, name):
  """Returns the class of module `name` whose name is that of the file."""
  found = module(kind, name)
  wanted = name.replace('_', '').lower()
  for attribute, value in vars(found).items():
    if inspect.isclass(value) and attribute.lower() == wanted and value.__module__ == found.__name__:
      return value
  there = [value.__name__ for value in vars(found).values()
           if inspect.isclass(value) and value.__module__ == found.__name__]
  raise errors.UserError(f'{found.__file__}: {found.__name__} defines no class called like its file; wanted: '
                         f'{name.replace("_", " ").title().replace(" ", "")} (there are: '
                         f'{", ".join(there) or "none"})')


def named(kind, key):
  """Returns the kind of what a configuration of `kind` names under `key`, or None if it names nothing there.

  >>> named('layer', 'router'), named('router', 'inner'), named('layer', 'd_ff')
  ('router', 'router', None)
  """
  return kind if key == 'inner' else key if key in PACKAGES else None


def nested(section):
  """Yields a section of a configuration and those of what it wraps, its `inner`, outermost first.

  >>> [one['name'] for one in nested(dict(name='shared', inner=dict(name='moe')))]
  ['shared', 'moe']
  """
  while section is not None:
    yield section
    section = section.get('inner')


def fields(kind, name):
  """Returns the names of the fields of the class of module `name`."""
  known = inspect.signature(constructor(kind, name).__init__).parameters
  return [field for field in known if field not in ('self', 'rngs')]


def executor(text):
  """Returns the function `execute` of the executor that `text` names, with its own fields bound.

  `text` is the name of a module, with fields or without: 'gather', 'all_to_all:chunks=4'. Fields are whole
  numbers. Raises UserError, naming what there is.
  """
  def positive(where, key, number, _):
    if not number.isdigit() or not int(number):
      raise errors.UserError(f'{where}: {key}={number!r} is not a positive whole number')
    return int(number)
  return _bound('executor', text, 'execute', positive)


def launcher(text):
  """Returns the function `launch` of the launcher that `text` names, with its own fields bound.

  As for `executor`: 'local:jobs=2', 'slurm:partition=gpu,time=240'. A field has the type of its default.
  """
  def typed(where, key, word, default):
    return parsing.typed(f'{where}: {key}', word, type(default), default)
  return _bound('launcher', text, 'launch', typed)


def _bound(kind, text, function, convert):
  """`function` of the module of `kind` in 'module:field=value,...' with its keyword-only fields bound.

  convert: function (where, field, text of the value, default) -> value.
  """
  name, _, fields = text.partition(':')
  found = getattr(module(kind, name), function)
  parameters = inspect.signature(found).parameters.values()
  known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
  given = {}
  for field in filter(None, fields.split(',')):
    key, _, value = field.partition('=')
    if key not in known:
      raise errors.UserError(f'{kind} {text!r}: {name} has no field {key!r}{errors.nearest(key, known)}'
                             f' (it has: {", ".join(known) or "none"})')
    given[key] = convert(f'{kind} {text!r}', key, value, known[key])
  return functools.partial(found, **given)


def recipe(kind, fields):
  """Returns `functools.partial(Class, **fields)` for a configuration of `kind`.

  `fields` is a mapping with a `name`; nested mappings under a key of PACKAGES that
  `fields` is a mapping with a `name`; nested mappings under a key of PACKAGES that
  have a `name` become recipes themselves, and so does `inner`, of the same kind, and the entries
  of a tuple under such a key, which may be names alone. Nothing
  is built: whoever receives the recipe calls it with what only it knows (d_model, rngs).
  Raises UserError naming a field that the class does not have.
  """
  fields = dict(fields)
  make = constructor(kind, fields.pop('name'))
  known = [p for p in inspect.signature(make.__init__).parameters if p not in ('self', 'rngs')]
  for key, value in fields.items():
    if key not in known:
      raise errors.UserError(f'{kind} {make.__name__} has no field {key!r}'
                             f'{errors.nearest(key, known)} (it has: {", ".join(known)})')
    if named(kind, key):
      fields[key] = _nested(named(kind, key), value)
  return functools.partial(make, **fields)


def _nested(kind, value):
  """`value` with recipes of `kind` for mappings that have a name, and for the entries of a tuple."""
  if hasattr(value, 'keys') and 'name' in value:
    return recipe(kind, value)
  if isinstance(value, (tuple, list)):
    return tuple(recipe(kind, entry if hasattr(entry, 'keys') else {'name': entry}) for entry in value)
  return value


def takes(made, field):
  """Returns whether the class of a recipe, or a class, has the field `field`."""
  return field in inspect.signature(getattr(made, 'func', made).__init__).parameters
