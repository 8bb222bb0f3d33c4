"""The argument of an experiment: what stands after the colon of `name:smoke,size=base`."""

import types

from stmoe import errors
from stmoe import parsing

ASKED = '?'                              # an argument that asks for the arguments that there are


class Asked(errors.UserError):
  """The answer to ASKED: `spec` has every argument with its default."""

  def __init__(self, spec):
    super().__init__(f'the arguments are {", ".join(spec)}')
    self.spec = spec


def parse(arg, **spec):
  """Returns a namespace of the values in `arg`, typed like the defaults in `spec`.

  >>> parse('smoke,experts=8', smoke=False, size='base', experts=64)
  namespace(smoke=True, size='base', experts=8)

  Args:
    arg:  '', or `key` (switches a bool on) and `key=value` between commas.
    spec: every key that the experiment knows, with its default.
  Raises:
    UserError: for an unknown key, a missing or mistyped value, or a key given twice.
  """
  if arg == ASKED:
    raise Asked(spec)
  values = dict(spec)
  given_keys = set()
  for item in filter(None, arg.split(',')):
    key, equals, text = item.partition('=')
    if key not in spec:
      listed = f' (there are: {", ".join(spec)})' if spec else ' (there are none)'
      raise errors.UserError(f'argument {key!r} is unknown{errors.nearest(key, spec)}{listed}')
    if key in given_keys:
      raise errors.UserError(f'argument {key!r} is given twice in {arg!r}')
    given_keys.add(key)
    if not equals and not isinstance(spec[key], bool):
      raise errors.UserError(f'argument {key!r} needs a value, for example {key}={spec[key]}')
    values[key] = parsing.typed(key, text, type(spec[key]), spec[key]) if equals else True
  return types.SimpleNamespace(**values)
