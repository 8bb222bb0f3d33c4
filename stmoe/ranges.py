"""What a field of a configuration may hold: objects that are the annotations of constructors' parameters.

  def __init__(self, d_model, *, num_experts: ranges.Count, k: ranges.Count = 1,
               capacity_factor: ranges.Pair(ranges.NonNegative | None) = (1.25, 2.0), rngs):

`declared.py` reads annotations without importing the file, and `sections.py` holds every configuration to
them. A parameter without annotation is no field: who builds the object gives it. `a | b` is what either
allows.
"""

import argparse
import ast
import typing

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


class Row(Range):
  """A tuple with an entry of each range."""

  def __init__(self, *kinds):
    self.kinds = kinds
    self.text = f'({", ".join(kind.text for kind in kinds)})'

  def holds(self, value):
    return (isinstance(value, (tuple, list)) and len(value) == len(self.kinds)
            and all(kind.holds(item) for kind, item in zip(self.kinds, value)))

  def read(self, text):
    return self.settle(items(text))

  def settle(self, value):
    if not isinstance(value, (tuple, list)) or len(value) != len(self.kinds):
      return value
    return tuple(entry(kind, item) for kind, item in zip(self.kinds, value))


class Pair(Row):
  """A value in training and a value in evaluation; a single value means both, and becomes two."""

  def __init__(self, kind):
    super().__init__(kind, kind)
    self.kind = kind
    self.text = f'two values, of training and of evaluation, or one for both; each {kind.text}'

  def holds(self, value):
    return super().holds(value) or self.kind.holds(value)

  def near(self, value):
    values = value if isinstance(value, (tuple, list)) else (value,)
    return next(filter(None, (self.kind.near(item) for item in values if not self.kind.holds(item))), '')

  def check(self, where, value):
    value = super().check(where, value)
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)

  def read(self, text):
    entries = items(text)
    return self.settle(entries * 2 if len(entries) == 1 and text[:1] not in '([' else entries)


class Weighed(Row):
  """The weight of a loss and its reduction over layers; a weight alone goes with the mean."""

  def __init__(self):
    super().__init__(NonNegative, Choice('mean', 'sum'))
    self.text += ', or the number alone for the mean'

  def holds(self, value):
    return super().holds(value) or self.kinds[0].holds(value)

  def check(self, where, value):
    value = super().check(where, value)
    return tuple(value) if isinstance(value, (tuple, list)) else (value, 'mean')

  def read(self, text):
    entries = items(text)
    return self.settle([*entries, 'mean'] if len(entries) == 1 and text[:1] not in '([' else entries)


class Many(Range):
  """A tuple of any number of entries of a range, but at least `least`."""

  def __init__(self, kind, least=0):
    self.kind, self.least = kind, least
    self.text = f'a tuple{" of at least one" if least else ""}, each {kind.text}'

  def holds(self, value):
    return (isinstance(value, (tuple, list)) and len(value) >= self.least
            and all(self.kind.holds(item) for item in value))

  def read(self, text):
    return self.settle(self._names(text) if isinstance(self.kind, String) else items(text))

  def settle(self, value):
    return tuple(entry(self.kind, item) for item in value) if isinstance(value, (tuple, list)) else value

  def near(self, value):
    wrong = [item for item in value if not self.kind.holds(item)] if isinstance(value, (tuple, list)) else ()
    return next(filter(None, map(self.kind.near, wrong)), '')

  def _names(self, text):
    """The texts in `text`, which is a literal only if it holds texts: a file may be called 1984, or [1]."""
    try:
      entries = literal(text) if text[:1] in '([' else None
    except ValueError:
      entries = None
    return words(text) if entries is None or not self.holds(entries) and entries else entries


class Layers(Range):
  """The layers of a stack: letters of blocks and how often they repeat."""

  text = "pairs of letters of blocks and a number of repeats of at least 1, for example (('dm', 6),)"
  repeats = Whole(1, 10_000)

  def holds(self, value):
    return isinstance(value, (tuple, list)) and len(value) > 0 and all(map(self._fits, value))

  def _fits(self, entry):
    return (isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[0], str)
            and len(entry[0]) > 0 and self.repeats.holds(entry[1]))


class Weights(Range):
  """The tasks of a mixture: names, or names with their weights, as pairs or as a mapping."""

  text = 'names of tasks, or pairs of a name and a weight above 0'

  def holds(self, value):
    if hasattr(value, 'items'):
      value = tuple(value.items())
    if not isinstance(value, (tuple, list)):
      return False
    return all(isinstance(item, str) for item in value) or all(map(self._fits, value))

  def _fits(self, entry):
    return (isinstance(entry, (tuple, list)) and len(entry) == 2 and isinstance(entry[0], str)
            and Positive.holds(entry[1]))

  def read(self, text):
    return literal(text) if text[:1] in '([' else tuple(words(text))


class Group(Range):
  """A mapping with these fields, all of them but names in `optional`."""

  def __init__(self, optional=(), **fields):
    self.fields, self.needed = fields, set(fields) - set(optional)
    self.text = f'a group with the fields {", ".join(fields)}'

  def holds(self, value):
    return self._complete(value) and all(self.fields[name].holds(item) for name, item in value.items())

  def check(self, where, value):
    if not self._complete(value):
      raise self.refusal(where, value)
    for name, field_value in value.items():
      self.fields[name].check(f'{where}.{name}', field_value)
    return value

  def _complete(self, value):
    return hasattr(value, 'items') and self.needed <= set(value) <= set(self.fields)


class Mapping(Range):
  """A group of fields."""

  text = 'a group of fields'

  def holds(self, value):
    return hasattr(value, 'items')


class Named(Range):
  """A mapping whose `name` is that of a module of a kind (see `lookup.PACKAGES`), with its fields.

  usual: the name of the module that is meant where there is no mapping, or None in its place.
  """

  def __init__(self, kind, usual=None):
    self.kind, self.usual = kind, usual
    self.text = f'a group with the name of a {kind} and its fields'

  def holds(self, value):
    return hasattr(value, 'items') and isinstance(value.get('name'), str)


class Chosen(String):
  """The name of a module of a kind, whose fields stand beside it, in the same section."""

  def __init__(self, kind):
    self.kind = kind
    self.text = f'the name of an {kind}'


class Spelled(String):
  """The name of a module of a kind with the module's fields as a text: 'all_to_all:chunks=4'."""

  def __init__(self, kind):
    self.kind = kind
    self.text = f'the name of an {kind}'


class Called(String):
  """The name of a module of a kind, which has its default fields."""

  def __init__(self, kind):
    self.kind = kind
    self.text = f'the name of a {kind}'


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


def words(text):
  """Returns what stands between the commas of `text`."""
  return [word for word in text.split(',') if word]


def items(text):
  """Returns the items of a literal with brackets or quotes, else the words between the commas of 'a, b'."""
  try:
    value = literal(text) if text[:1] in '([{' or {*text} & {*'\'"'} else None
  except ValueError:
    value = None
  if value is None:                      # words: what each of them is, its range says
    inside = text[1:-1] if text[:1] + text[-1:] in ('()', '[]') else text
    return [word.strip() for word in words(inside)]
  return list(value) if isinstance(value, (tuple, list)) else [value]


def entry(kind, value):
  """Returns an item for what `kind` is: read where the item is a word, else as it is."""
  return kind.read(value) if isinstance(value, str) else kind.settle(value)


# To a type checker an annotation is the type of the field's values.
if typing.TYPE_CHECKING:
  from builtins import bool as Flag, str as Text, str as Activation, str as Dtype
  from builtins import int as Count, int as Natural, int as Seed, int as Devices
  from builtins import float as Any, float as Positive, float as NonNegative, float as AtLeast1
  from builtins import float as Share, float as Above1, float as PartOf1, float as Below1, float as Between01
  Weight = tuple[float, str]
  Factors = tuple[float | None, float | None]
  Ids = tuple[int, ...]
  Pattern = tuple[tuple[str, int], ...]
  Shares = typing.Any
  Section = typing.Mapping[str, typing.Any]
  Yarn = typing.Mapping[str, typing.Any]
else:
  Flag = Bool()
  Text = String()
  Pattern = Layers()
  Shares = Weights()
  Section = Mapping()
  Count = Whole(1)
  Natural = Whole(0)
  Seed = Whole(0, 2**64 - 1)
  Ids = Many(Natural, least=1)
  Devices = Whole(1) | Whole(-1, -1)                                 # -1: the devices that are left over
  Any = Number()
  Positive = Number('above 0', low=LEAST)
  NonNegative = Number('of at least 0', low=0.0)
  AtLeast1 = Number('of at least 1', low=1.0)
  Above1 = Number('above 1', low=1 + 2**-23)
  Share = Number('from 0 to 1', low=0.0, high=1.0)
  PartOf1 = Number('above 0, at most 1', low=LEAST, high=1.0)
  Below1 = Number('of at least 0 and below 1', low=0.0, high=1 - 2**-24)
  Between01 = Number('above 0 and below 1', low=LEAST, high=1 - 2**-24)
  Weight = Weighed()                                                 # of a router's loss
  Factors = Pair(NonNegative | None)                                 # capacities; None = nothing is dropped
  Yarn = Group(factor=Positive, length=Count, fast=Positive, slow=Positive, size=Positive, truncate=Flag,
               optional=('truncate',))                               # `rotary.yarn`
  # Functions of one array, elementwise: `core/activations.py`.
  Activation = Choice('relu', 'gelu', 'silu', 'swish', 'tanh', 'sigmoid', 'relu6', 'elu', 'selu', 'celu',
                      'mish', 'leaky_relu', 'softplus', 'soft_sign', 'squareplus', 'hard_silu', 'hard_swish',
                      'hard_sigmoid', 'hard_tanh', 'log_sigmoid', 'identity', 'relu2')
  # No float16: its small gradients are zeros without a scaled loss, and CPUs multiply no matrices of it.
  Dtype = Choice('float32', 'bfloat16')
