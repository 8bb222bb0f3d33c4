"""Fields that stay in a configuration when another module is chosen, which has no such field: what to do."""

import typing

from stmoe import declared
from stmoe import lookup


def advice(group: typing.Any, key: str, functions: dict[str, str]) -> str:
  """Returns '; CHOSEN=OTHER has it. ...' for the field `key`, or '' where no other of its kind has it.

  OTHER is the choice that has most of the fields that are there.

  Args:
    group:     a `sections.Group`, in which `key` is no field.
    functions: dict section -> module, of sections that name a function of a module.
  """
  if not group.made_of:
    return ''
  kind = group.made_of[0]
  of_kind = declared.of_functions(functions[kind]) if kind in functions else lookup.known_fields(kind)
  able = [name for name, fields in of_kind.items() if key in fields and fields[key].range is not None]
  if not able:
    return ''
  most = max(able, key=lambda name: sum(field in group.values for field in of_kind[name]))
  return (f'; {group.where(group.chosen)}={most} has it. No override takes a field away: leave {key!r} out '
          "of a copy of the experiment's file")
