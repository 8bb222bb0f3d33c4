"""What a field of a configuration may hold: objects that are the annotations of constructors' parameters.

  def __init__(self, d_model, *, num_experts: ranges.Count, k: ranges.Count = 1,
               capacity_factor: ranges.Pair(ranges.NonNegative | None) = (1.25, 2.0), rngs):

`declared.py` reads annotations without importing the file, and `sections.py` holds every configuration to
them. A parameter without annotation is no field: who builds the object gives it. `a | b` is what either
allows.
`value_ranges.py` defines the ranges of one value; an annotation names all ranges here.
"""

import math
import typing

from stmoe import value_ranges

Range = value_ranges.Range
Whole = value_ranges.Whole
Size = value_ranges.Size
Number = value_ranges.Number
Above0 = value_ranges.Above0
Bool = value_ranges.Bool
String = value_ranges.String
Choice = value_ranges.Choice
Nothing = value_ranges.Nothing
Either = value_ranges.Either


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
      entries = value_ranges.literal(text) if text[:1] in '([' else None
    except ValueError:
      entries = None
    return words(text) if entries is None or not self.holds(entries) and entries else entries


class Layers(Range):
  """The layers of a stack: letters of blocks and how often they repeat."""

  text = "pairs of letters of blocks and a number of repeats from 1 to 10000, for example (('dm', 6),)"
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
    return value_ranges.literal(text) if text[:1] in ('(', '[') else tuple(words(text))


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


def rounded_up(product: float) -> int:
  """Returns the least whole number that is not below `product`, of a share and a number.

  A product that differs from a whole number by the rounding of floats is that number.

  >>> 0.07 * 100, rounded_up(0.07 * 100), rounded_up(7.1)
  (7.000000000000001, 7, 8)
  """
  near = round(product)
  return near if math.isclose(product, near, rel_tol=1e-12) else math.ceil(product)


def words(text):
  """Returns what stands between the commas of `text`."""
  return [word for word in text.split(',') if word]


def items(text):
  """Returns the items of a literal with brackets or quotes, else the words between the commas of 'a, b'."""
  try:
    value = value_ranges.literal(text) if text[:1] in '([{' or {*text} & {*'\'"'} else None
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
  Pruning = typing.Mapping[str, typing.Any]
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
  Positive = Above0()
  NonNegative = Number('of at least 0', low=0.0)
  AtLeast1 = Number('of at least 1', low=1.0)
  Above1 = Number('above 1', low=1 + 2**-23)
  Share = Number('from 0 to 1', low=0.0, high=1.0)
  PartOf1 = Number('above 0, at most 1', low=value_ranges.LEAST, high=1.0)
  Below1 = Number('of at least 0 and below 1', low=0.0, high=1 - 2**-24)
  Between01 = Number('above 0 and below 1', low=value_ranges.LEAST, high=1 - 2**-24)
  Weight = Weighed()                                                 # of a router's loss
  Factors = Pair(NonNegative | None)                                 # capacities; None = nothing is dropped
  Pruning = Group(kept=PartOf1, before=Natural, after=Natural, every=Count, memory=Below1, initial=PartOf1,
                  optional=('every', 'memory', 'initial'))           # `row_pruning.around`
  # Functions of one array, elementwise: `core/units/activations.py`.
  Activation = Choice('relu', 'gelu', 'silu', 'swish', 'tanh', 'sigmoid', 'relu6', 'elu', 'selu', 'celu',
                      'mish', 'leaky_relu', 'softplus', 'soft_sign', 'squareplus', 'hard_silu', 'hard_swish',
                      'hard_sigmoid', 'hard_tanh', 'log_sigmoid', 'identity', 'relu2', 'gelu_exact')
  # No float16: its small gradients are zeros without a scaled loss, and CPUs multiply no matrices of it.
  Dtype = Choice('float32', 'bfloat16')

# Python's own types, as annotations of fields: any value of the type that a configuration can hold.
PLAIN = {'float': Number(), 'int': Whole(-value_ranges.MOST_WHOLE), 'bool': Bool(), 'str': String()}
