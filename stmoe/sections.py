"""What a configuration holds: every field with its range and its default, and the check of all fields.

Sections that name something (model, optimizer, ...) have the fields that it declares (see `declared.py`).
Other sections have the fields of the tables here. Nothing is imported that a configuration names.
"""

import copy
import functools
import operator
from typing import NamedTuple

import ml_collections

from stmoe import declared
from stmoe import errors
from stmoe import lookup
from stmoe import plugins
from stmoe import ranges
from stmoe import value_ranges
from stmoe.declared import Field
from stmoe.plugins import kinds

METHODS = ('rank', 'decode', 'span')                                 # of evaluation, see train/taskscore.py
# That train, see train/groups.py.
PARTS = ('all', 'expert', 'non_expert', 'attention', 'ffn', 'adapter')

# Fields of sections without a name. A field without a default must be there.
TABLES = {
    'train': dict(
        steps=Field(ranges.Count), batch_size=Field(ranges.Count), microbatches=Field(ranges.Count, 1),
        clip=Field(ranges.NonNegative, 0.0), log_every=Field(ranges.Count), stats_every=Field(ranges.Count),
        stop_after_bad=Field(ranges.Count), trainable=Field(ranges.Choice(*PARTS), 'all')),
    'eval': dict(
        every=Field(ranges.Count), batches=Field(ranges.Natural), batch_size=Field(ranges.Count),
        draws=Field(ranges.Count, 1), methods=Field(ranges.Many(ranges.Choice(*METHODS)), ()),
        examples=Field(ranges.Natural, 0)),
    'checkpoint': dict(
        every=Field(ranges.Count), keep=Field(ranges.Count), async_save=Field(ranges.Flag),
        best=Field(ranges.Text, '')),
    'mesh': dict(
        data=Field(ranges.Devices), expert=Field(ranges.Devices), model=Field(ranges.Devices),
        rules=Field(ranges.Text, '')),
    'log': dict(writers=Field(ranges.Many(ranges.Called('writer')), ('tensorboard',))),
    'profile': dict(start=Field(ranges.Whole(-1)), steps=Field(ranges.Count)),
    'finetune': dict(
        model=Field(ranges.Choice('start', 'own'), 'start'),
        load=Field(ranges.Choice('all', 'body', 'partial'), 'all'),
        optimizer=Field(ranges.Choice('fresh', 'keep'), 'fresh'),
        dropout_rate=Field(ranges.Below1 | None, None),
        expert_dropout_rate=Field(ranges.Below1 | None, None),
        capacity_factor=Field(ranges.Factors | None, None), aux=Field(ranges.Flag, True),
        adapter=Field(ranges.Text, ''),
        fields=Field(ranges.Section, declared.OPTIONAL)),
}

# Fields of section data that the pipeline reads itself, whatever the source of the data is.
EVERY_SOURCE = dict(
    source=Field(lookup.Name('source'), declared.OPTIONAL), shuffle=Field(ranges.Flag),
    eval_split=Field(ranges.Choice('train', 'validation')))

# Fields of section model, whatever the model is: of its parameters, see `modules.maker`.
OF_MODELS = dict(param_dtype=Field(ranges.Dtype, declared.OPTIONAL),
                 adapter=Field(ranges.Named('adapter') | None, declared.OPTIONAL))

# What a run cannot do without, and all there is.
TRAINING = ('model', 'blocks', 'data', 'optimizer', 'schedule', 'losses', 'train', 'eval', 'loss',
            'checkpoint', 'mesh', 'profile')
SECTIONS = (*TRAINING, 'groups', 'finetune', 'decode', 'log')
OF_PARAMETERS = 'stmoe.train.groups'     # whose `group_of` has the fields of a group of parameters
KINDS = {'model': 'model', 'decode': 'strategy', 'loss': 'target'}
FUNCTIONS = kinds.MODULES


class Group(NamedTuple):
  """A group of fields of a configuration.

  path:   where it is; '' = the whole.
  values: mapping field -> value.
  fields: dict field -> Field.
  chosen: field that decides which other fields there are, or ''.
  title:  what the fields belong to, for messages.
  open:   whether other fields are allowed: nothing is declared of them.
  others: what fields of any other name are: a Field, or the dict field -> Field of groups of any name; None =
    there are no others.
  made_of: (kind, name) of the module that has the fields, or (section, name) of a function; () = of neither.
  """
  path: str
  values: ml_collections.ConfigDict
  fields: dict
  chosen: str = ''
  title: str = ''
  open: bool = False
  others: Field | dict | None = None
  made_of: tuple = ()

  def where(self, key):
    """Returns the path of a field."""
    return f'{self.path}.{key}' if self.path else key


def groups(config):
  """Yields the Groups of a configuration, the outermost last; a section that is no group is left out."""
  for section, values in (dict(groups=ml_collections.ConfigDict()) | dict(config.items())).items():
    if not _is_group(values):
      continue
    if section in TABLES:
      yield Group(section, values, TABLES[section])
      yield from _of_start(values.get('fields'), config.get('model'))
    elif section == 'data':
      yield _data(values)
    elif section == 'losses':
      weighed = Field(ranges.Weight)
      yield Group(section, values, dict.fromkeys(values, weighed), others=weighed)
    elif section == 'blocks':
      yield from _blocks(values)
    elif section == 'groups':
      fields, title = of_parameters(config), 'a group of parameters'
      yield Group(section, values, dict.fromkeys(values, Field(ranges.Section)), title=title, others=fields)
      yield from (Group(f'groups.{name}', group, fields)
                  for name, group in values.items() if _is_group(group))
    elif section in FUNCTIONS:
      name = values.get('name')
      named = {'name': Field(ranges.Choice(*declared.functions(FUNCTIONS[section])))}
      exists = lookup.has(section, name)
      mine = _own(lookup.fields(section, name)) if exists else {}
      yield Group(section, values, named | mine, 'name', f'{section} {name!r}',
                  made_of=(section, name) if exists else ())
    elif section in KINDS:
      yield from _of_kind(KINDS[section], section, values, more=OF_MODELS if section == 'model' else ())
  yield Group('', config, _outermost(config), open=True)


def _of_start(fields, model):
  """The Group of finetune.fields: any fields of the model."""
  if _is_group(fields) and _is_group(model):
    name = model.get('name', '')
    _, known, unknown = _module(lookup.homes('model'), 'model', name)
    known = {key: Field(field.range, declared.OPTIONAL) for key, field in known.items()}
    yield Group('finetune.fields', fields, known, title=f'model {name!r}', open=unknown)


def _outermost(config):
  """The fields of a whole configuration; a model that writes texts has a strategy to do so."""
  fields = dict.fromkeys(SECTIONS, Field(ranges.Section, declared.OPTIONAL))
  fields['seed'] = Field(ranges.Seed, 0)
  model = config.get('model')
  name = model.get('name') if _is_group(model) else None
  if lookup.has('model', name) and declared.has_method(lookup.PACKAGES['model'], name, 'begin'):
    fields['decode'] = Field(ranges.Named('strategy', 'greedy'), declared.COMPUTED)
  return fields


def of_parameters(config):
  """Returns dict field -> Field of a group of parameters (see train/groups.py) of a configuration."""
  fields = declared.of_functions(OF_PARAMETERS)['group_of']
  section = config.get('optimizer')
  name = section.get('name') if _is_group(section) else None
  optimizer = declared.of_functions(FUNCTIONS['optimizer']).get(name, {})
  decay = optimizer.get('weight_decay', fields['weight_decay'])
  return fields | dict(weight_decay=Field(decay.range | None, None))


def begin(config, path):
  """Adds the group that is to hold the field `path` to `config`: where groups of any name may be added, and
  where `path` is the name of a module that a field may hold.

  Raises UserError for a field that such a group has not.
  """
  outer, _, last = path.rpartition('.')
  for group in list(groups(config)):
    field = group.fields.get(outer.removeprefix(f'{group.path}.')) if last == 'name' else None
    if field and outer.startswith(f'{group.path}.') and _may_be_named(field.range):
      with config.unlocked(), config.ignore_type():
        group.values[outer.rpartition('.')[2]] = {}
      return
    name, _, key = path.removeprefix(f'{group.path}.').partition('.')
    if not isinstance(group.others, dict) or path != f'{group.path}.{name}.{key}' or '.' in key:
      continue
    if key not in group.others:
      raise errors.UserError(f'config.{path}: {group.title} has no field {key!r}'
                             f'{errors.nearest(key, group.others)} (it has: {", ".join(group.others)})')
    with config.unlocked():
      holder = config
      for outer in (*group.path.split('.'), name):
        holder[outer] = holder.get(outer, {})
        holder = holder[outer]
    return


def _may_be_named(kind):
  """Whether a field of the range `kind` may hold a group with the name of a module."""
  return isinstance(kind, ranges.Named) or any(map(_may_be_named, getattr(kind, 'kinds', ())))


def _data(values):
  """The Group of section data: its source says what fields there are, and may leave it to data.objective."""
  name, objectives = lookup.source_of(values), lookup.objectives()
  fields = _left_aside(lookup.OF_DATA) | (_own(lookup.beside('source', name, values)) if name else {})
  if 'source' in values:
    objectives = [objective for objective, source in objectives.items() if source == name]
  if objectives:
    fields['objective'] = Field(ranges.Choice(*objectives), fields['objective'].default)
  chosen = 'source' if 'source' in values else 'objective'
  return Group('data', values, fields | EVERY_SOURCE, chosen, lookup.titled(values),
               made_of=('source', name) if name else ())


@declared.steady
def _left_aside(packages):
  """The fields of all sources of data: fields of other sources may stay when a source is chosen.

  packages: those that are read, lookup.OF_DATA.
  """
  del packages                           # whether they change is what `steady` asks
  choices = {}
  for kind in ('source', 'objective'):
    for fields in lookup.known_fields(kind).values():
      for key, field in _own(fields).items():
        choices.setdefault(key, {})[field.range.text] = field.range
  return {key: Field(functools.reduce(operator.or_, ranges_of.values()), declared.OPTIONAL)
          for key, ranges_of in choices.items()}


def _blocks(blocks):
  yield Group('blocks', blocks, dict.fromkeys(blocks, Field(ranges.Section)))
  for letter, block in blocks.items():
    if _is_group(block):
      attention = Field(ranges.Flag | ranges.Named('attention'), True)
      own_fields = dict(attention=attention, norm=Field(ranges.Flag, True),
                        around=Field(ranges.Named('around'), declared.OPTIONAL),
                        window=Field(ranges.Count, declared.OPTIONAL),
                        tied=Field(ranges.Flag, declared.OPTIONAL))
      yield from _of_kind('layer', f'blocks.{letter}', block, 'layer', own_fields)


def _of_kind(kind, path, values, key='name', more=()):
  """The Groups of a mapping that names a module of `kind` under `key`, and of mappings inside it."""
  unnamed = lookup.UNNAMED.get(kind, declared.REQUIRED)
  name = values.get(key, unnamed)
  exists, fields, unknown = _module(lookup.homes(kind), kind, name if isinstance(name, str) else '')
  name_field = {key: Field(lookup.Name(kind), unnamed)}
  yield Group(path, values, name_field | fields | dict(more), key, f'{kind} {name!r}', open=unknown,
              made_of=(kind, name) if exists else ())
  for inner in values:
    if lookup.named(kind, inner) and _is_group(values[inner]):
      yield from _of_kind(lookup.named(kind, inner), f'{path}.{inner}', values[inner])


@declared.steady
def _module(packages, kind, name):
  """(whether a module or a wrapper of `kind` is called `name`, the fields a configuration sets, open)."""
  exists = lookup.has(kind, name) or name in lookup.wrappers(kind)
  fields = _own(lookup.fields(kind, name)) if exists else {}
  bare = not fields and any(name in plugins.files(home) for home in packages)       # a file of one's own
  return exists, fields, bare or not exists


def _own(fields):
  """The fields that a configuration sets: they have a range. The builder gives the other fields."""
  return {name: field for name, field in fields.items() if field.range is not None}


def _is_group(value):
  return isinstance(value, (dict, ml_collections.ConfigDict))


def complete(config: ml_collections.ConfigDict) -> set:
  """Writes the default of every field that is not there, in place; returns the set of their paths.

  A field stays away if only the builder of the object knows its value.
  """
  paths = set()
  while absent := list(_absent(config)):
    with config.unlocked(), config.ignore_type():
      for group, key, value in absent:
        group.values[key] = group.fields[key].range.check(group.where(key), value)
    paths |= {group.where(key) for group, key, _ in absent}          # some are groups, and may lack fields
  return paths


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns `config` with the default of every field that is not there: a copy, if any is missing."""
  if any(True for _ in _absent(config)):
    config = copy.deepcopy(config)
    complete(config)
  return config


def whole(fields: dict) -> dict:
  """Returns a configuration, a dict of dicts, with the default of every field that is not there."""
  config = ml_collections.ConfigDict(fields)
  complete(config)
  return config.to_dict()


def _absent(config):
  """Yields (group, key, default) of every field that is absent and has a default."""
  for group in groups(config):
    for key, field in group.fields.items():
      value = field.written
      present = key in group.values and not (group.values[key] is None and field.range.usual)
      if value is not declared.UNWRITTEN and not present:
        yield group, key, value


def defaults(config: ml_collections.ConfigDict) -> set:
  """Returns the set of the paths of all fields of a complete configuration that have their default."""
  paths: set[str] = set()
  for group in sorted(groups(config), key=lambda group: -group.path.count('.')):      # inner ones first
    for key, field in group.fields.items():
      if key not in group.values:
        continue
      value, where = group.values[key], group.where(key)
      if field.range is not None and field.range.usual and _is_group(value):
        inside = {f'{where}.{name}' for name in value} - {f'{where}.name'}
        if value.get('name') == field.range.usual and inside <= paths:
          paths.add(where)
      elif field.written is not declared.UNWRITTEN and value == field.range.check(where, field.written):
        paths.add(where)
  return paths


def field_of(config: ml_collections.ConfigDict, path: str) -> Field | None:
  """Returns the Field at `path` of a configuration, there or not; None where none is declared or addable.

  Modules, and what other sources of data have, are not added by a single field.
  """
  outer, _, key = path.rpartition('.')
  group = next((group for group in groups(config) if group.path == outer), None)
  if group is None:
    return None
  field = group.fields.get(key, group.others if isinstance(group.others, Field) else None)
  if field is None or field.default is not declared.OPTIONAL or key in group.values:
    return field
  whole = group.path in ('', 'data') or field.range is ranges.Section or _may_be_named(field.range)
  return None if whole else field


def addable(config: ml_collections.ConfigDict, path: str) -> list[str]:
  """Returns the fields beside `path` that a command may add to a configuration, modules by their name."""
  group = next((group for group in groups(config) if group.path == path.rpartition('.')[0]), None)
  if group is None or group.path in ('', 'data'):
    return []
  return [group.where(f'{key}.name' if _may_be_named(field.range) else key)
          for key, field in group.fields.items()
          if field.default is declared.OPTIONAL and key not in group.values]


def range_of(config: ml_collections.ConfigDict, path: str) -> ranges.Range | None:
  """Returns the Range of the field `path` of a configuration, or None where nothing is declared of it."""
  field = field_of(config, path)
  return field and field.range


def choosers(config: ml_collections.ConfigDict) -> dict[str, Group]:
  """Returns dict path -> Group for the fields of a configuration that decide which others their group has."""
  return {group.where(group.chosen): group for group in groups(config) if group.chosen}


def check(config, whole=True):
  """Holds every field of a configuration to its range, in place: a single value for a pair becomes two.

  Numbers of which nothing is declared are finite.

  Args:
    config: a ConfigDict, locked or not.
    whole:  no field is missing and no field or name unknown. False for the configurations of earlier runs:
      they may be of another time, and what is built of them says so.
  Raises:
    UserError: naming the field, its value and what is expected.
  """
  for group in list(groups(config)):
    if whole:
      _check_fields(group)
    for key in list(group.values):
      value, field = group.values[key], group.fields.get(key)
      if field is None or not whole and key == group.chosen:
        _finite(group.where(key), value)
        continue
      checked = field.range.check(group.where(key), value)
      if whole:
        _check_names(field.range, value, group.where(key))
      if checked is not value:
        with group.values.ignore_type():
          group.values[key] = checked


def _check_names(kind, value, where):
  """Raises UserError for a text in `value` of range `kind` that should name a module and names none."""
  if isinstance(kind, ranges.Spelled):
    lookup.spelled(kind.kind, value, where)
  elif isinstance(kind, ranges.Called):
    lookup.check(kind.kind, value, where)
  elif isinstance(kind, ranges.Either):
    _check_names(next(fitting for fitting in kind.kinds if fitting.holds(value)), value, where)
  elif isinstance(kind, ranges.Many):
    for entry in value:
      _check_names(kind.kind, entry, where)


def _check_fields(group):
  """Raises UserError for a field of `group` that is missing, or that nothing declares."""
  chosen = group.chosen
  if chosen in group.values:
    group.fields[chosen].range.check(group.where(chosen), group.values[chosen])
  elif chosen and group.fields[chosen].default is declared.REQUIRED:
    raise errors.UserError(f'{group.path} has no field {chosen!r}, which says what it is')
  for key in group.values:
    if key not in group.fields and not (group.others or group.open and _may_have(group, key)):
      from stmoe import explained        # which reads this file
      raise errors.UserError(explained.unknown(group, key))
  _missing(group)


def _may_have(group, key):
  """Whether an open group may have the field `key`: its module takes it, or does not say."""
  taken = lookup.fields(*group.made_of) if group.made_of else {}
  return not taken or key in taken


def _missing(group):
  """Raises UserError for a field of `group` that is not there and has no default."""
  for key, field in group.fields.items():
    if field.default is declared.REQUIRED and key not in group.values:
      raise errors.UserError(f'{group.path}: {group.title or group.path} needs the field {key!r}')


def present(config):
  """Raises UserError unless `config` has every section and field without which nothing is computed."""
  for section in TRAINING:
    if section not in config:
      raise errors.UserError(f'the configuration has no section {section}')
  for group in groups(config):
    _missing(group)


def _finite(where, value):
  """Raises UserError for a number in `value` that is not finite."""
  if isinstance(value, float) and not value_ranges.finite(value):
    raise errors.UserError(f'{where}={value!r}: expected a finite number')
  if _is_group(value):
    for key in value:
      _finite(f'{where}.{key}', value[key])
  elif isinstance(value, (tuple, list)):
    for entry in value:
      _finite(where, entry)
