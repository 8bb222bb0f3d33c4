"""The file name is the registry: names in a configuration are module names.

`dict(name='switch', num_experts=8)` under the key `router` means the class `Switch`
of `stmoe/routers/switch.py`, called with `num_experts=8`. A class is found by its
file: `st_moe.py` holds `STMoE`, `mlp.py` holds `Mlp` (case and underscores ignored).
"""

import functools
import importlib
import inspect
import pkgutil

from stmoe import errors
from stmoe import parsing

# The key of a configuration under which a module is named -> the package it lives in.
PACKAGES = {
    'model': 'stmoe.models',
    'layer': 'stmoe.layers',
    'inner': 'stmoe.layers',          # the layer that a layer wraps
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
  package = importlib.import_module(PACKAGES[kind])
  return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg)


def module(kind, name):
  """Returns the module called `name` among those of `kind`.

  Raises UserError, naming the nearest modules, when there is none.
  """
  if name not in available(kind):
    raise errors.UserError(f'no {kind} is called {name!r}{errors.nearest(name, available(kind))}'
                           f' (there are: {", ".join(available(kind))})')
  return importlib.import_module(f'{PACKAGES[kind]}.{name}')


def constructor(kind, name):
  """Returns the class of module `name` whose name is that of the file."""
  found = module(kind, name)
  wanted = name.replace('_', '').lower()
  for attribute, value in vars(found).items():
    if inspect.isclass(value) and attribute.lower() == wanted and value.__module__ == found.__name__:
      return value
  own = [n for n, value in vars(found).items()
         if inspect.isclass(value) and value.__module__ == found.__name__]
  raise errors.UserError(f'{found.__name__.replace(".", "/")}.py: no class is called like the file, '
                         f'{name.title().replace("_", "")!r} (it defines: {", ".join(own) or "none"})')


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
  have a `name` become recipes themselves. Nothing is built: whoever receives the
  recipe calls it with what only it knows (d_model, rngs). So do the entries of a tuple under such a key,
  which may be names alone.
  Raises UserError naming a field that the class does not have.
  """
  fields = dict(fields)
  make = constructor(kind, fields.pop('name'))
  known = [p for p in inspect.signature(make.__init__).parameters if p not in ('self', 'rngs')]
  for key, value in fields.items():
    if key not in known:
      raise errors.UserError(f'{kind} {make.__name__} has no field {key!r}'
                             f'{errors.nearest(key, known)} (it has: {", ".join(known)})')
    if key in PACKAGES:
      fields[key] = _nested(key, value)
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
