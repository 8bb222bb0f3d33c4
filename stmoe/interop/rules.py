"""Tables of names: which of our arrays, or which slice of an array, is which tensor of a checkpoint.

A rule is (ours, theirs) or (ours, theirs, op). `ours` is the path of an array of the model. In the path the
blocks of a stack are numbered through and `[{e}]` stands for an expert: both are axes of stacked arrays.

  ('decoder/layers/{i}/layer/experts/wi[{e}]', 'model.layers.{i}.mlp.experts.{e}.gate_proj.weight', LINEAR)

`theirs` None: the array is not in checkpoints of the family and keeps its initial value.
"""

import dataclasses
import re

from stmoe import errors

KEEP = 'keep'                          # the same shape
LINEAR = 'linear'                      # [out, in] there, [in, out] here
ROW = 'row'                            # [1, n] there, [n] here


@dataclasses.dataclass(frozen=True)
class Place:
  """A slice of an array of ours, and the tensor that it is.

  leaf:   path of the array in the training state, a tuple of keys.
  index:  numbers of the slice along the leading axes: repeat, expert; () for a whole array.
  name:   as in a rule, for people; tensor: the tensor's name in the checkpoint, or None.
  op:     KEEP, LINEAR or ROW.
  shape:  of the slice; `there` is the tensor's.
  """
  leaf: tuple
  index: tuple
  name: str
  tensor: str | None
  op: str
  shape: tuple

  @property
  def there(self):
    return self.shape[::-1] if self.op == LINEAR else (1, *self.shape) if self.op == ROW else self.shape


def places(shapes, table):
  """Returns the Places of a model's arrays, leaf by leaf.

  Args:
    shapes: dict 'params', 'router_state' -> pure dicts of arrays or ShapeDtypeStructs, scanned or not.
    table:  rules; the first rule that fits counts.
  Raises:
    UserError: for arrays that no rule speaks of.
  """
  compiled = [(_pattern(rule[0]), *rule[1:], *([KEEP] if len(rule) < 3 else [])) for rule in table]
  all_places, unknown = [], []
  for leaf, shape, layers in _leaves(shapes):
    for number, name in layers:
      fits = next(((re.fullmatch(pattern, name), theirs, op) for pattern, theirs, op in compiled
                   if re.fullmatch(pattern, name)), None)
      if fits is None:
        unknown.append(name)
        continue
      all_places += _slices(leaf, shape, number, name, *fits)
  if unknown:
    raise errors.UserError(f'{len(unknown)} arrays of the model are in no checkpoint of this family: '
                           f'{some(unknown)}')
  return all_places


def _slices(leaf, shape, number, name, match, theirs, op):
  """The Places of a layer's array: a single Place, or one for each expert."""
  index, layer_shape = ((), shape) if number is None else ((number,), shape[1:])
  fields = match.groupdict()
  if theirs is None or '{e}' not in theirs:
    return [Place(leaf, index, name, theirs and theirs.format(**fields), op, tuple(layer_shape))]
  return [Place(leaf, (*index, e), f'{name}[{e}]', theirs.format(e=e, **fields), op, tuple(layer_shape[1:]))
          for e in range(layer_shape[0])]


def _pattern(ours):
  """The regular expression of a rule's left side."""
  text = re.escape(ours.replace('[{e}]', ''))
  text = text.replace(r'\{i\}', r'(?P<i>\d+)')
  return re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>\\w+)', text)


def _leaves(shapes):
  """Yields (path, shape, [(number along the leading axis or None, name in rules)]) of every array."""
  # Router state is only in some blocks: the parameters give the numbers of all blocks.
  plans = {}
  for tree in shapes.values():
    plans = _plans(tree, ()) | plans
  for part, tree in shapes.items():
    yield from _walk(tree, (part,), (), [(None, ())], plans)


def _plans(tree, path):
  """Dict path of a stack -> dict segment -> (number of its first block, blocks in a unit, repeats)."""
  if not isinstance(tree, dict):
    return {}
  plans = {}
  for key, value in tree.items():
    if key != 'segments':
      plans |= _plans(value, (*path, key))
      continue
    plans[path], first = {}, 0
    for segment, units in sorted(value.items()):
      stacked = 'blocks' in units
      blocks = (units if stacked else units[0])['blocks']
      repeats = _leaf(blocks).shape[0] if stacked else len(units)
      plans[path][segment] = first, len(blocks), repeats
      first += len(blocks) * repeats
  return plans


def _leaf(tree):
  while isinstance(tree, dict):
    tree = next(iter(tree.values()))
  return tree


def _walk(tree, path, stack, layers, plans):
  """`stack` is the path without the part; `layers` the numbers and names of the blocks that `tree` is."""
  if not isinstance(tree, dict):
    yield path, tuple(tree.shape), [(number, '/'.join(map(str, name))) for number, name in layers]
    return
  for key, value in tree.items():
    if key != 'segments':
      yield from _walk(value, (*path, key), (*stack, key), [(n, (*name, key)) for n, name in layers], plans)
      continue
    for segment, units in sorted(value.items()):
      first, width, repeats = plans[stack][segment]
      stacked = 'blocks' in units
      for unit, blocks in [(None, units['blocks'])] if stacked else [
          (r, one['blocks']) for r, one in sorted(units.items())]:
        for place, block in sorted(blocks.items()):
          inner = (segment, 'blocks', place) if stacked else (segment, unit, 'blocks', place)
          named = [(r if stacked else None, (*stack, 'layers', first + r * width + place))
                   for r in (range(repeats) if stacked else [unit])]
          yield from _walk(block, (*path, 'segments', *inner), (), named, plans)


def check(found, shapes, copies=(), ignored=()):
  """Returns the names in `shapes` that are `ignored`; raises UserError unless every tensor has its place.

  Args:
    found:   Places.
    shapes:  dict tensor name -> shape in the checkpoint.
    copies:  names of tensors that repeat other tensors.
    ignored: regular expressions of names that mean nothing to the model.
  """
  by_tensor = {place.tensor: place for place in found if place.tensor is not None}
  missing = sorted(name for name in by_tensor if name not in shapes)
  if missing:
    raise errors.UserError(f'{len(missing)} tensors are missing: {some(missing)}')
  wrong = [f'{name} is {list(shapes[name])}, not {list(place.there)} ({place.name})'
           for name, place in by_tensor.items() if tuple(shapes[name]) != place.there]
  if wrong:
    raise errors.UserError(f'{len(wrong)} tensors do not fit config.json: {some(wrong)}')
  unplaced = sorted(set(shapes) - set(by_tensor) - set(copies))
  skipped = [name for name in unplaced if any(re.fullmatch(pattern, name) for pattern in ignored)]
  if len(skipped) < len(unplaced):
    extra = [name for name in unplaced if name not in skipped]
    raise errors.UserError(f'{len(extra)} tensors have no place in the model: {some(extra)}')
  return skipped


def some(names, most=4):
  """Returns the first of `names`, with commas, and how many more there are."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more


def pattern(letters):
  """Returns the layers of a stack as `stack.Stack` takes them, from a letter for each layer.

  >>> pattern('dmdmdm'), pattern('dmmm')
  ((('dm', 3),), (('d', 1), ('m', 3)))
  """
  for width in range(1, len(letters) // 2 + 1):
    if len(letters) % width == 0 and letters[:width] * (len(letters) // width) == letters:
      return ((letters[:width], len(letters) // width),)
  return tuple((run.group(1), len(run.group())) for run in re.finditer(r'(.)\1*', letters))


def letters(layers):
  """Returns a letter for each layer, the inverse of `pattern`."""
  return ''.join(unit * repeats for unit, repeats in layers)
