"""What every router, bank of experts, executor, layer, metric, ... must do: `stmoe check`.

A file of ROOMS for each kind that has shared checks; its public functions are the checks. A check is called
with a name and returns nothing, or raises AssertionError, which says what is wrong. The suite calls the same
checks for all that the project holds.
"""

import importlib
import importlib.util
import inspect
import typing

from stmoe import errors
from stmoe import plugins
from stmoe.conform import generic

ROOMS = ('stmoe.conform', 'stmoe.conform.data', 'stmoe.conform.derived', 'stmoe.conform.parts',
         'stmoe.conform.training')
Check = typing.Callable[..., None]


def checks(kind: str) -> list[Check]:
  """Returns the checks of things of `kind`, a key of `kinds.KINDS`, in the order of their file; or []."""
  places = [f'{room}.{kind}' for room in ROOMS if importlib.util.find_spec(f'{room}.{kind}')]
  if not places:
    return []
  module = importlib.import_module(places[0])
  return [function for function in vars(module).values()
          if inspect.isfunction(function) and function.__module__ == module.__name__
          and not function.__name__.startswith('_')]


def takes_fields(kind: str) -> bool:
  """Returns whether checks of things of `kind` take fields."""
  return any(parameter.kind is parameter.VAR_KEYWORD for check in checks(kind)
             for parameter in inspect.signature(check).parameters.values())


def title(check: Check) -> str:
  """Returns what a check is about, the first line of its docstring."""
  return (inspect.getdoc(check) or '').partition('\n')[0]


def failures(kind: str, name: str, fields: dict[str, typing.Any],
             say: typing.Callable[[str, str | None], None]) -> int:
  """Returns how many checks `name` of `kind` fails.

  Args:
    fields: of the constructor, where the generic ones are not those wanted.
    say:    called with the title of every check, and what is wrong or None.
  Raises:
    generic.Unknown: it needs another field.
  """
  count = 0
  for check in checks(kind):
    try:
      check(name, **fields)
      say(title(check), None)
    except generic.Unknown:
      raise
    except Exception as error:           # whatever the code that is checked does
      count += 1
      said = ' '.join(str(error).split())[:400] or 'it failed'
      expected = isinstance(error, (AssertionError, errors.UserError))
      say(title(check), said if expected else plugins.blamed(error) or f'{type(error).__name__}: {said}')
  return count
