"""The file name is the registry: names in a configuration are module names.

`dict(name='switch', num_experts=8)` under the key `router` means the class `Switch`
of `stmoe/routers/switch.py`, called with `num_experts=8`. A class is found by its
file: `st_moe.py` holds `STMoE`, `mlp.py` holds `Mlp` (case and underscores ignored).
What there is, and with which fields, is read from the files (see `declared.py`). Only what
is built is imported. Files outside of the package are named by `--plugin`, see `plugins`.
"""

import functools
import importlib
import importlib.util
import inspect
import re
import types
import typing

from stmoe import declared
from stmoe import errors
from stmoe import plugins
from stmoe import ranges
from stmoe import value_ranges
from stmoe.plugins import kinds

PACKAGES = kinds.PACKAGES              # the key of a configuration that names a module -> its package
OF_DATA = PACKAGES['source'], PACKAGES['objective']                  # packages that say what data have

# (kind, parameter) that the builder of the object gives: no field, whatever its annotation says.
GIVEN = {('experts', 'num_experts'), ('schedule', 'total_steps')}

# What a section of a kind without a name means.
UNNAMED = {'target': 'ids', 'rotary_scaling': 'yarn'}

# Kinds that are functions of their modules, and named with their fields in one text.
FUNCTIONS = {'executor': 'execute', 'launcher': 'launch', 'surgery': 'operate',
             'factorisation': 'factorise', 'adaptation': 'adapt'}
# How objects of a kind are called, where a package holds several kinds and helpers: the arguments tell them.
CALLED = dict.fromkeys(('layer', 'attention', 'head'), kinds.SUB_LAYER) | {
    kind: kinds.AT_TOP[kind][FUNCTIONS[kind]] for kind in ('surgery', 'factorisation', 'adaptation')}


def available(kind: str) -> list[str]:
  """Returns the sorted names of the modules of `kind` (a key of KINDS), or of the functions of its module."""
  return list(_available(kinds.KINDS[kind], kind))


@declared.steady
def _available(package, kind):
  names = declared.functions(package) if kind in kinds.MODULES else declared.names(package)
  return sorted(name for name in names if has(kind, name))


def wrappers(kind: str) -> list[str]:
  """Returns the sorted names of modules of `kind` that wrap another, their `inner`: a folder of their own."""
  return sorted(declared.names(homes(kind)[1]))


def homes(kind: str) -> tuple[str, str]:
  """Returns the packages of the modules of `kind`: its own, and that of its wrappers."""
  return kinds.KINDS[kind], f'{kinds.KINDS[kind]}.wrappers'


def has(kind: str, name: typing.Any) -> bool:
  """Returns whether a module of `kind`, no wrapper, or a function of `kinds.MODULES` is called `name`."""
  if not isinstance(name, str) or not re.fullmatch(r'[^\W_]\w{0,60}', name):
    return False
  if kind in kinds.MODULES:
    return name in declared.functions(kinds.MODULES[kind])
  package, arguments = PACKAGES[kind], CALLED.get(kind)
  if arguments is None or not declared.exists(package, name):
    return declared.exists(package, name)
  try:
    return declared.called_with(package, name, FUNCTIONS.get(kind)) == arguments
  except errors.UserError:               # a file that is no Python: whoever names it is told
    return True


def kinds_of(name: str) -> list[str]:
  """Returns the kinds of which a module, a wrapper or a function is called `name`.

  >>> kinds_of('st_moe'), kinds_of('replay'), kinds_of('lm/text')
  (['router'], ['router'], [])
  """
  return [kind for kind in kinds.PLURALS if has(kind, name) or name in wrappers(kind)]


def check(kind: str, name: str, where: str = '') -> None:
  """Raises UserError, naming the nearest modules, when none of `kind` and no wrapper is called `name`.

  where: the field that names it, if any does.
  """
  if not has(kind, name) and name not in wrappers(kind):
    names = available(kind) + wrappers(kind)
    every = f'there are: {", ".join(names)}' if len(names) <= errors.MANY else (
        f'stmoe list {kinds.PLURALS.get(kind, kind)} shows all {len(names)}')
    other = next((plugin for plugin in plugins.known() if plugin.name == name), None)
    instead = (f'; {other.path} is taken for {other.holds}{kinds.OR_SAID}' if other else
               errors.nearest(name, names))
    raise errors.UserError(f'{where and where + ": "}no {kind} is called {value_ranges.shown(name)}{instead} '
                           f'({every}; a file of your own is named by --plugin FILE)')


class Name(ranges.String):
  """The range of the field that names a module of `kind`."""

  def __init__(self, kind: str):
    self.kind = kind

  def check(self, where: str, value: typing.Any) -> typing.Any:
    check(self.kind, value, where)
    return value


def home(kind: str, name: str) -> str:
  """Returns the package of module `name` of `kind`, which may be a wrapper; the module of a function."""
  return homes(kind)[0 if has(kind, name) else 1]


def module(kind: str, name: str) -> types.ModuleType:
  """Returns the module called `name` among the modules of `kind` and its wrappers, or of a function `name`.

  Raises UserError when there is none, and for a file that is no Python.
  """
  check(kind, name)
  try:
    package = home(kind, name)
    own = package if kind in kinds.MODULES else f'{package}.{name}'
    return plugins.module(package, name) or importlib.import_module(own)
  except SyntaxError as error:
    raise errors.UserError(f'{error.filename}, line {error.lineno}: {error.msg}') from None


def constructor(kind: str, name: str) -> typing.Any:
  """Returns the class of module `name` whose name is that of the file."""
  file_module = module(kind, name)
  plain = name.replace('_', '').lower()
  for attribute, value in vars(file_module).items():
    if inspect.isclass(value) and attribute.lower() == plain and value.__module__ == file_module.__name__:
      return value
  classes = [value.__name__ for value in vars(file_module).values()
             if inspect.isclass(value) and value.__module__ == file_module.__name__]
  raise errors.UserError(f'{file_module.__file__}: {file_module.__name__} defines no class called like '
                         f'its file; wanted: {name.replace("_", " ").title().replace(" ", "")} (there are: '
                         f'{", ".join(classes) or "none"})')


def named(kind: str, key: str) -> str | None:
  """Returns the kind of what a configuration of `kind` names under `key`, or None if it names nothing there.

  >>> named('layer', 'router'), named('router', 'inner'), named('layer', 'd_ff')
  ('router', 'router', None)
  """
  return kind if key == 'inner' else key if key in PACKAGES else None


def nested(section: typing.Any) -> typing.Iterator:
  """Yields a section of a configuration and the sections that it wraps, its `inner`, outermost first.

  Of a block that has an attention of its own, the attention's section, too.

  >>> block = dict(name='shared', attention=dict(name='switch_head'), inner=dict(name='moe'))
  >>> [one['name'] for one in nested(block)]
  ['shared', 'switch_head', 'moe']
  """
  while section is not None:
    yield section
    if hasattr(section.get('attention'), 'keys'):
      yield from nested(section['attention'])
    section = section.get('inner')


def fields(kind: str, name: str) -> dict[str, declared.Field]:
  """Returns dict field -> `declared.Field` of the class, or of the function, `name`; {} if it is neither.

  Of kinds that are told by functions at the top of a file, see `options`.
  """
  check(kind, name)
  if kind in kinds.AT_TOP:               # a class in the file is of another kind
    return {}
  package = home(kind, name)
  found = (declared.of_functions(package)[name] if kind in kinds.MODULES else
           declared.of_class(package, name) or {})
  return {key: field._replace(range=None) if (kind, key) in GIVEN else field for key, field in found.items()}


def options(kind: str, name: str) -> dict[str, declared.Field]:
  """Returns dict field -> `declared.Field` of the function of module `name`, of a kind of FUNCTIONS."""
  check(kind, name)
  return declared.of_function(PACKAGES[kind], name, FUNCTIONS[kind])


def spelled(kind: str, text: str, where: str = '') -> tuple[str, dict[str, typing.Any]]:
  """Returns (name, fields) of 'module:field=value,...', a module of `kind`: fields of its function or class.

  'gather', 'all_to_all:chunks=4', 'slurm:partition=gpu,time=240'. Raises UserError, naming what there is.

  where: the field that has the text, if any has.
  """
  name, _, listing = text.partition(':')
  check(kind, name, where)
  said = f'{where and where + ": "}{kind} {text!r}'
  every = options(kind, name) if kind in FUNCTIONS else fields(kind, name)
  declared_fields = {key: field for key, field in every.items() if field.range is not None}
  typed_fields = {}
  for word in filter(None, listing.split(',')):
    key, _, value = word.partition('=')
    if key not in declared_fields:
      raise errors.UserError(f'{said}: {name} has no field {key!r}'
                             f'{errors.nearest(key, declared_fields)}'
                             f'{unranged(kind, name, key) or where_else(having(kind, key))} '
                             f'(it has: {", ".join(declared_fields) or "none"})')
    typed_fields[key] = declared_fields[key].range.typed(f'{said}: {key}', value)
  return name, typed_fields


def executor(text: str) -> typing.Callable:
  """Returns the function `execute` of the executor that `text` names, with its own fields bound."""
  return bound('executor', text)


def launcher(text: str) -> typing.Callable:
  """Returns the function `launch` of the launcher that `text` names, with its own fields bound."""
  return bound('launcher', text)


def bound(kind: str, text: str) -> typing.Callable:
  """Returns the function (see FUNCTIONS) of the module of `kind` that `text` names, its own fields bound."""
  name, own_fields = spelled(kind, text)
  return functools.partial(getattr(module(kind, name), FUNCTIONS[kind]), **own_fields)


def recipe(kind: str, fields: typing.Mapping[str, typing.Any]) -> functools.partial:
  """Returns `functools.partial(Class, **fields)` for a configuration of `kind`.

  `fields` is a mapping with a `name`. Nested mappings under a key of PACKAGES that
  have a `name` become recipes themselves, and so does `inner`, of the same kind. So do the entries
  of a tuple under such a key; entries may be names alone. Nothing
  is built: whoever receives the recipe calls it with what only the caller knows (d_model, rngs).
  Raises UserError naming a field that the class does not have.
  """
  fields = dict(fields)
  make = constructor(kind, fields.pop('name', UNNAMED.get(kind)))
  parameters = [p for p in inspect.signature(make.__init__).parameters if p not in ('self', 'rngs')]
  for key, value in fields.items():
    if key not in parameters:
      raise errors.UserError(f'{kind} {make.__name__} has no field {key!r}'
                             f'{errors.nearest(key, parameters)}{where_else(having(kind, key))} '
                             f'(it has: {", ".join(parameters)})')
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


def known_fields(kind: str) -> dict[str, dict]:
  """Returns dict name -> its `fields` of all modules of `kind` but modules whose files cannot be read.

  What is wrong with such a file is told to whoever names it.
  """
  return dict(_known_fields(kinds.KINDS[kind], kind))


@declared.steady
def _known_fields(package, kind):
  if kind in kinds.MODULES:
    return declared.of_functions(package)
  by_name = {}
  for name in available(kind):
    try:
      by_name[name] = declared.of_class(package, name) or {}
    except errors.UserError:
      continue
  return by_name


def having(kind: str, field: str) -> list[str]:
  """Returns the names of the modules of `kind` of which a configuration sets the field `field`.

  >>> having('strategy', 'beams'), having('executor', 'chunks')
  (['beam'], ['all_to_all', 'hops'])
  """
  own = known_fields(kind) if kind not in FUNCTIONS else {
      name: declared.of_function(PACKAGES[kind], name, FUNCTIONS[kind]) for name in available(kind)}
  return [name for name, known in own.items() if field in known and known[field].range is not None]


def encodes_inputs(model: str) -> bool:
  """Returns whether the named model is an encoder-decoder: texts that are given go into another stack.

  >>> encodes_inputs('t5'), encodes_inputs('lm')
  (True, False)
  """
  return model in having('model', 'decoder')


def unranged(kind: str, name: str, field: str) -> str:
  """Returns '; FILE has it without a range ...' of a field that a plugin does not annotate, else ''."""
  file = plugins.files(kinds.KINDS[kind]).get(name)
  said = f'; {file} has it without a range, so no configuration sets it: annotate it there, {field}: float'
  return said if file and field in fields(kind, name) and (kind, field) not in GIVEN else ''


def where_else(names: typing.Sequence[str], prefix: str = '') -> str:
  """Returns '; beam has it' for the `names` of modules that have a field which another lacks, '' for none.

  prefix: the field that chooses the module, and '='.
  """
  more = f' and {len(names) - errors.LONG} more' if len(names) > errors.LONG else ''
  verb = 'has' if len(names) == 1 else 'have'
  return f'; {prefix}{", ".join(names[:errors.LONG])}{more} {verb} it' if names else ''


def objectives() -> dict[str, str]:
  """Returns dict objective -> source: what data.objective may be, and the source of data that has it.

  >>> objectives()['classification'], objectives()['lm']
  ('images', 'texts')
  """
  return dict(_objectives(OF_DATA))


@declared.steady
def _objectives(packages):
  del packages                           # whether they change is what `steady` asks
  sources: dict[str, str] = {}
  for name, declared_fields in known_fields('source').items():
    kind = declared_fields['objective'].range if 'objective' in declared_fields else None
    names = available(kind.kind) if isinstance(kind, ranges.Chosen) else getattr(kind, 'names', ())
    sources |= dict.fromkeys(names, name)
  return sources


def source_of(data: typing.Any) -> str | None:
  """Returns the name of the source that section `data` of a configuration means, or None if there is none.

  It is data.source. A section without that field means the source that has its data.objective.

  >>> source_of(dict(objective='lm')), source_of(dict(source='table')), source_of({})
  ('texts', 'table', None)
  """
  if 'source' in data:
    return data['source'] if has('source', data['source']) else None
  objective = data.get('objective')
  return objectives().get(objective) if isinstance(objective, str) else None


def titled(data: typing.Any) -> str:
  """Returns what section `data` is called in a message: "data.objective='lm'", "data.source='table'"."""
  key = 'source' if 'source' in data else 'objective'
  return f'data.{key}={data.get(key)!r}'


def beside(kind: str, name: str, values: typing.Mapping[str, typing.Any]) -> dict[str, declared.Field]:
  """Returns dict field -> Field of a module, and of those modules that its fields in `values` choose."""
  own_fields = fields(kind, name)
  chosen = [fields(field.range.kind, values[key]) for key, field in own_fields.items()
            if isinstance(field.range, ranges.Chosen) and has(field.range.kind, values.get(key))]
  return functools.reduce(lambda known, more: known | more, chosen, own_fields)


def source(data: typing.Any) -> typing.Any:
  """Returns the source of data that section `data` of a configuration means, made of its fields.

  Fields of other sources are left aside. Raises UserError where there is no such source, and for a field
  that is missing.
  """
  name = source_of(data)
  if name is None and 'source' not in data:
    by_name = objectives()
    raise errors.UserError(f'data.objective: none is called {data.get("objective")!r}'
                           f'{errors.nearest(data.get("objective"), by_name)} '
                           f'(there are: {", ".join(by_name)})')
  return constructor('source', name or data['source'])(**_own('source', name, data))


def _own(kind, name, values):
  """Those of `values` that are fields of a module; a field that chooses another module is its recipe."""
  arguments = {}
  for key, field in fields(kind, name).items():
    if key in values and isinstance(field.range, ranges.Chosen):
      chosen = constructor(field.range.kind, values[key])
      arguments[key] = functools.partial(chosen, **_own(field.range.kind, values[key], values))
    elif key in values:
      arguments[key] = values[key]
    elif field.default is declared.REQUIRED:
      raise errors.UserError(f'data: {kind} {name!r} needs the field {key!r}')
  return arguments


def takes(made: typing.Callable, field: str) -> bool:
  """Returns whether the class of a recipe, or a class, has the field `field`."""
  return field in inspect.signature(getattr(made, 'func', made).__init__).parameters


def bind(module: types.ModuleType, section: str, fields: typing.Mapping[str, typing.Any],
         **given) -> functools.partial:
  """Returns `functools.partial` of the function of `module` that `fields['name']` names.

  Where many small choices share a module, the function's name is the registry. A choice is a public function
  whose fields are keyword-only; what comes before them is no field.

  Args:
    module:  holds the choices.
    section: name of the configuration section, for the message.
    fields:  mapping with `name`; the other entries become keyword arguments.
    given:   values that are no field of the configuration, passed where the function asks for them.
  Raises:
    UserError: no such function, an unknown field, or a field that is needed and missing.
  """
  fields = dict(fields)
  name = fields.pop('name')
  functions = {n: f for n, f in vars(module).items() if _is_choice(f, module)}
  functions |= dict.fromkeys(plugins.files(module.__name__))
  if own := plugins.module(module.__name__, name):
    functions[name] = getattr(own, name)
  if name not in functions:
    raise errors.UserError(f'{section}.name={name!r} does not exist{errors.nearest(name, functions)}'
                           f' (there are: {", ".join(sorted(functions))})')
  parameters = inspect.signature(functions[name]).parameters
  keywords = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n not in given]
  for field in fields:
    if field not in keywords:
      raise errors.UserError(f'{section} {name!r} has no field {field!r}{errors.nearest(field, keywords)}'
                             f' (it has: {", ".join(keywords) or "none"})')
  missing = [n for n in keywords if parameters[n].default is parameters[n].empty and n not in fields]
  if missing:
    raise errors.UserError(f'{section} {name!r} needs the field {missing[0]!r}')
  return functools.partial(functions[name], **fields, **{n: v for n, v in given.items() if n in parameters})


def _is_choice(f, module):
  if not inspect.isfunction(f) or f.__module__ != module.__name__ or f.__name__.startswith('_'):
    return False
  return any(p.kind is p.KEYWORD_ONLY for p in inspect.signature(f).parameters.values())
