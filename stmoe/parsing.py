"""Text that a user typed -> a value of the type that its field has. Nothing is evaluated.

Used by overrides (`--config.a.b=text`) and by arguments of experiments (`name:key=text`).
"""

import ast

from stmoe import errors

_BOOLEANS = {'true': True, '1': True, 'false': False, '0': False}


def typed(where, text, kind, current):
  """Returns `text` as a value of type `kind`.

  bool: true, false, 1, 0. int and float: as Python reads them; an int counts as a float where a float is
  expected. str: the text itself. tuple and list: a Python literal, or items between commas.
  NoneType, the type of a field that holds None and declares nothing: any literal, else the text.

  Args:
    where:   name of the field, for the message.
    kind:    type of the field.
    current: the field's value, the model for the items of a tuple or list.
  Raises:
    UserError: naming the field, the text and the type expected.
  """
  wrong = errors.UserError(f'{where}={text}: expected {_article(kind)} (now {current!r})')
  if kind is str:
    return text
  if kind is bool:
    if text.lower() not in _BOOLEANS:
      raise wrong
    return _BOOLEANS[text.lower()]
  if kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      raise wrong from None
  if kind in (tuple, list):
    return _conform(_items(text, current, wrong), kind(current or ()), wrong)
  if kind is type(None):
    value = _literal(text)
    return text if value is _NOT_A_LITERAL else value
  raise errors.UserError(f'{where}: a field of type {kind.__name__} cannot be set as text')


_NOT_A_LITERAL = object()


def _literal(text):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return _NOT_A_LITERAL


def _article(kind):
  return f'{"an" if kind.__name__[0] in "aeiou" else "a"} {kind.__name__}'


def _items(text, current, wrong):
  """The items in `text`: of a literal, or words between commas where items are or may be strings."""
  words = all(isinstance(item, str) for item in current or ()) and [w for w in text.split(',') if w]
  if words and text[0] not in '([':
    return words
  value = _literal(text)
  if isinstance(value, (tuple, list)):
    return value
  if value is not _NOT_A_LITERAL:
    return (value,)
  if words:                              # a name that begins with a bracket
    return words
  raise wrong


def _conform(value, model, wrong):
  """`value` with the types of `model`: item by item at equal length, else after its first item."""
  if isinstance(model, (tuple, list)):
    if not isinstance(value, (tuple, list)):
      raise wrong
    alike = len({type(item) for item in model}) == 1
    models = model if len(model) == len(value) else model[:1] * len(value) if alike else value
    return type(model)(_conform(v, m, wrong) for v, m in zip(value, models))
  if isinstance(model, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if value is None or model is None or type(value) is type(model):
    return value
  raise wrong
