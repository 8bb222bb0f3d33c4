"""Ranges of one value: a number, a flag, a text, one of some names, None, or what either of two allows.

`Range` says what every range can do. `ranges.py` has those of several values, and the names of all.
"""

import argparse
import ast

from stmoe import errors

# Numbers are computed with in float32, in which smaller numbers are 0 and larger numbers infinite.
LEAST, MOST = 1.1754944e-38, 3.4028234e38
MOST_WHOLE = 2**31 - 1                                               # sizes and steps are int32 on devices


class Range:
  """What a field may hold. `text` says it in a message, after 'expected'.

  check(where, value): returns the value to keep; raises UserError naming the field `where`.
  typed(where, text): returns the value that a user typed, checked.
  near(value): returns the allowed values most like a refused value, as text, or ''.
  read(text): returns the value that a user typed; raises ValueError for any other text.
  settle(value): returns `value` of a literal in this field's type, if it has such a value: 1 as 1.0.
  usual: the name of what stands here if nothing else is named, see `Named`; None elsewhere.
  """

  text = ''
  usual = None

  def __or__(self, other):
    return Either(self, Nothing() if other is None else other)

  def holds(self, value):
    """Returns whether `value` is allowed as it is."""
    return True

  def near(self, value):
    return ''

  def check(self, where, value):
    if not self.holds(value):
      raise self.refusal(where, value)
    return value

  def refusal(self, where, value):
    """Returns the UserError that says what was expected instead of `value`."""
    near = f'; nearest: {self.near(value)}' if self.near(value) else ''
    return errors.UserError(f'{where}={shown(value)}: expected {self.text}{near}')

  def __call__(self, text):
    """Returns the value of `text` as argparse asks for it: a range is the `type` of an argument, too."""
    try:
      value = self.read(text)
    except ValueError:
      value = text
    if not self.holds(value):
      near = f'; nearest: {self.near(value)}' if self.near(value) else ''
      raise argparse.ArgumentTypeError(f'{shorter(text)}: expected {self.text}{near}')
    return value

  def typed(self, where, text):
    """Returns the value that a user typed for the field `where`; raises UserError."""
    try:
      value = self.read(text)
    except ValueError:
      raise errors.UserError(f'{where}={shorter(text)}: expected {self.text}') from None
    return self.check(where, value)

  def read(self, text):
    return self.settle(literal(text))

  def settle(self, value):
    return value


class Whole(Range):
  """A whole number from `low` to `high`."""

  def __init__(self, low, high=MOST_WHOLE):
    self.low, self.high = low, high
    self.text = f'{low}' if low == high else f'a whole number of at least {low}' if high == MOST_WHOLE else (
        f'a whole number from {low} to {high}')

  def holds(self, value):
    return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

  def near(self, value):
    return str(round(min(max(value, self.low), self.high))) if finite(value) else ''

  def read(self, text):
    return int(text)


class Size(Range):
  """A number of bytes, with a unit of thousands: 900MB, 5GB.

  >>> Size().read('1.5GB')
  1500000000
  """

  text = 'a size such as 900MB or 5GB'
  units = dict(KB=10**3, MB=10**6, GB=10**9, TB=10**12)

  def holds(self, value):
    return isinstance(value, int) and value > 0

  def read(self, text):
    number, unit = text[:-2], text[-2:].upper()
    if unit not in self.units or not number.isascii() or not number.replace('.', '', 1).isdigit():
      raise ValueError(text)
    return round(float(number) * self.units[unit])

  def near(self, value):
    text = str(value)
    return f'{text}GB' if text.isascii() and text.isdigit() and 0 < int(text) < 1000 else ''


class Number(Range):
  """A finite number from `low` to `high`; `bounds` says so in words, where not all numbers are allowed."""

  def __init__(self, bounds='', low=-MOST, high=MOST):
    self.low, self.high = low, high
    self.text = f'a number {bounds}'.rstrip() if bounds else 'a finite number'

  def holds(self, value):
    return finite(value) and self.low <= value <= self.high

  def near(self, value):
    if not finite(value):
      return ''
    end = float(self.low if value < self.low else self.high)
    return str(end) if end.is_integer() and abs(end) < MOST else ''  # not an end that only float32 knows

  def read(self, text):
    return float(text)

  def settle(self, value):
    return float(value) if finite(value) else value


class Above0(Number):
  """A number above 0. `zero` is what stands for 0 instead, such as 'decode.name=greedy'."""

  def __init__(self, zero=''):
    super().__init__('above 0', low=LEAST)
    self.zero = zero

  def near(self, value):
    return self.zero if finite(value) else ''


class Bool(Range):
  """True or False."""

  text = 'True or False'
  words = {'true': True, '1': True, 'false': False, '0': False}

  def holds(self, value):
    return isinstance(value, bool)

  def read(self, text):
    if text.lower() not in self.words:
      raise ValueError
    return self.words[text.lower()]


class String(Range):
  """Any text, such as the path of a file."""

  text = 'a text'

  def holds(self, value):
    return isinstance(value, str)

  def read(self, text):
    return text


class Choice(String):
  """One of some names."""

  def __init__(self, *names):
    self.names = names
    self.text = f'one of {", ".join(names)}'

  def holds(self, value):
    return value in self.names if isinstance(value, str) else False

  def near(self, value):
    return errors.nearest(value, self.names).removeprefix('; nearest: ')


class Nothing(Range):
  """None."""

  text = 'None'

  def holds(self, value):
    return value is None

  def read(self, text):
    if text != 'None':
      raise ValueError
    return None


class Either(Range):
  """What any of some ranges allows."""

  def __init__(self, *kinds):
    self.text = ' or '.join(kind.text for kind in kinds)
    # None first: where None may stand alone it does not mean both of a Pair.
    self.kinds = sorted(kinds, key=lambda kind: not isinstance(kind, Nothing))
    self.usual = next(filter(None, (kind.usual for kind in kinds)), None)

  def holds(self, value):
    return any(kind.holds(value) for kind in self.kinds)

  def near(self, value):
    return next(filter(None, (kind.near(value) for kind in self.kinds)), '')

  def check(self, where, value):
    fitting = next((kind for kind in self.kinds if kind.holds(value)), None)
    if fitting is None:
      raise self.refusal(where, value)
    return fitting.check(where, value)

  def read(self, text):
    for kind in self.kinds:
      try:
        return kind.read(text)
      except ValueError:
        continue
    raise ValueError

  def settle(self, value):
    return next((kind.settle(value) for kind in self.kinds if kind.holds(value)), value)


def finite(value):
  """Returns whether `value` is a number, no bool, and finite in float32."""
  return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST


def shown(value):
  """Returns `value` as a message shows it: short."""
  return shorter(repr(value.to_dict() if hasattr(value, 'to_dict') else value))


def shorter(text):
  """Returns `text`, cut where it is long."""
  return text if len(text) <= 80 else f'{text[:77]}...'


def literal(text):
  """Returns the value of a Python literal; raises ValueError if `text` is none."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
    raise ValueError from error
