"""Functions called by the name and fields of a configuration section: the function's name is the registry."""

import functools
import inspect

from stmoe import errors


def bind(module, section, fields, **given):
  """Returns `functools.partial` of the function of `module` that `fields['name']` names.

  Args:
    module:  its public functions are the choices.
    section: name of the configuration section, for the message.
    fields:  mapping with `name`; the other entries become keyword arguments.
    given:   values that are no field of the configuration, passed where the function asks for them.
  Raises:
    UserError: no such function, a field it does not have, or one it needs and did not get.
  """
  fields = dict(fields)
  name = fields.pop('name')
  known = {n: f for n, f in vars(module).items()
           if inspect.isfunction(f) and f.__module__ == module.__name__ and not n.startswith('_')}
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
