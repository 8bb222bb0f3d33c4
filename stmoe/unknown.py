"""What is said of a field that its group of a configuration (`sections.Group`) does not have."""

import typing

from stmoe import errors
from stmoe import lookup
from stmoe import value_ranges


def possible(group: typing.Any, key: str) -> bool:
  """Returns whether an open group may have the field `key`: its module takes it, or does not say."""
  kind, name = group.made_of or ('', '')
  taken = lookup.fields(kind, name) if kind in lookup.PACKAGES else {}
  return not taken or key in taken


def line(group: typing.Any, key: str) -> str:
  """Returns the line on field `key`: its value, the nearest fields, and which modules have such a field."""
  value, names = group.values[key], list(group.fields)
  shown = '' if hasattr(value, 'keys') else (
      f'={value if isinstance(value, str) else value_ranges.shown(value)}')
  return (f'{group.where(key)}{shown}: {group.title or group.path} has no field {key!r}'
          f'{errors.nearest(key, names)}{where_else(group, key)} (it has: {", ".join(names)})')


def where_else(group: typing.Any, key: str) -> str:
  """Returns '; decode.name=beam has it': with which choices a group has a field that it lacks, else ''."""
  kind = group.made_of[0] if group.made_of else ''
  return lookup.where_else(kind, key, f'{group.where(group.chosen)}=') if kind in lookup.PACKAGES else ''
