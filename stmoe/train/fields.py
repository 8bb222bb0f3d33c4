"""Functions called by the name and fields of a configuration section: the function's name is the registry.

A choice is a public function whose fields are keyword-only; what comes before them is no field.
"""

import functools
import inspect

from stmoe import errors


def bind(module, section, fields, **given):
  """Returns `functools.partial` of the function of `module` that `fields['name']` names.

  Args:
    module:  holds the choices.
    section: name of the configuration section, for the message.
    fields:  mapping with `name`; the other entries become keyword arguments.
    given:   values that are no field of the configuration, passed where the function asks for them.
  Raises:
    UserError: no such function, a field it does not have, or one it needs and did not get.
  """
  fields = dict(fields)
  name = fields.pop('name')
  known = {n: f for n, f in vars(module).items() if _is_choice(f, module)}
  if name not in known:
    raise errors.UserError(f'{section}.name={name!r} does not exist{errors.nearest(name, known)}'
                           f' (there are: {", ".join(sorted(known))})')
  wanted = inspect.signature(known[name]).parameters
  keywords = [n for n, p in wanted.items() if p.kind is p.KEYWORD_ONLY and n not in given]
  for field in fields:
    if field not in keywords:
      raise errors.UserError(f'{section} {name!r} has no field {field!r}{errors.nearest(field, keywords)}'
                             f' (it has: {", ".join(keywords) or "none"})')
  missing = [n for n in keywords if wanted[n].default is wanted[n].empty and n not in fields]
  if missing:
    raise errors.UserError(f'{section} {name!r} needs the field {missing[0]!r}')
  return functools.partial(known[name], **fields, **{n: v for n, v in given.items() if n in wanted})


def _is_choice(f, module):
  if not inspect.isfunction(f) or f.__module__ != module.__name__ or f.__name__.startswith('_'):
    return False
  return any(p.kind is p.KEYWORD_ONLY for p in inspect.signature(f).parameters.values())
