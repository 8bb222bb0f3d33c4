"""Tables of names: which of our arrays, or which slice of an array, is which tensor of a checkpoint.

A rule is (ours, theirs) or (ours, theirs, op). `ours` is the path of an array of the model. In the path the
blocks of a stack are numbered through and `[{e}]` stands for an expert: both are axes of stacked arrays.

  ('decoder/layers/{i}/layer/experts/wi[{e}]', 'model.layers.{i}.mlp.experts.{e}.gate_proj.weight', LINEAR)

Where ours is a part of a tensor, the tensor's name ends in the part, an entry for each of its first axes:
`{e}` the expert's, `0` an axis of one, `1/2` the second of two halves, `0::2` every second from the first,
`:` all. The experts of Granite are stacked, first the gates of an expert, then what is gated:

  ('decoder/layers/{i}/layer/experts/wg[{e}]', 'model.layers.{i}.mlp.input_linear.weight[{e},1/2]', LINEAR)

`theirs` None: the array is not in checkpoints of the family and keeps its initial value.
"""

import dataclasses
import re

from stmoe import errors

KEEP = 'keep'                          # the same shape
LINEAR = 'linear'                      # [out, in] there, [in, out] here


@dataclasses.dataclass(frozen=True)
class Place:
  """A slice of an array of ours, and the tensor, or the part of a tensor, that it is.

  leaf:   path of the array in the training state, a tuple of keys.
  index:  numbers of the slice along the leading axes: repeat, expert; () for a whole array.
  name:   as in a rule, for people; tensor: the tensor's name in the checkpoint, or None.
  op:     KEEP or LINEAR.
  shape:  of the slice; `there` is that of the tensor or its part.
  cut:    numbers and slices of the tensor's leading axes that are the part; () for a whole tensor.
  whole:  shape of the whole tensor.
  """
  leaf: tuple
  index: tuple
  name: str
  tensor: str | None
  op: str
  shape: tuple
  cut: tuple
  whole: tuple

  @property
  def there(self):
    return _there(self.shape, self.op)


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


def tensor(name, table, expert=None):
  """Returns the name of the tensor that is the array `name` of a model, as rules call the array; or None.

  None: no rule speaks of the array, or the array is a part of a tensor.

  Args:
    expert: number of one, of an array of experts.
  """
  for ours, theirs, *_ in table:
    fits = re.fullmatch(_pattern(ours), name)
    if fits:
      return None if theirs is None or '[' in theirs else theirs.format(e=expert, **fits.groupdict())
  return None


def _slices(leaf, shape, number, name, match, theirs, op):
  """The Places of a layer's array: a single Place, or one for each expert."""
  index, layer_shape = ((), shape) if number is None else ((number,), shape[1:])
  fields = match.groupdict()
  theirs, _, part = (theirs or '').partition('[')
  entries = part.removesuffix(']').split(',') if part else []
  if '{e}' not in theirs and '{e}' not in entries:
    cut = _cut(entries, _there(layer_shape, op), None, 0)
    return [Place(leaf, index, name, theirs.format(**fields) or None, op, tuple(layer_shape), *cut)]
  shape, number = tuple(layer_shape[1:]), layer_shape[0]
  return [Place(leaf, (*index, e), f'{name}[{e}]', theirs.format(e=e, **fields), op, shape,
                *_cut(entries, _there(shape, op), e, number)) for e in range(number)]


def _there(shape, op):
  return tuple(shape[::-1] if op == LINEAR else shape)


def _cut(entries, there, expert, number):
  """(`cut`, `whole`) of a Place whose part has shape `there`, of the expert, of `number` experts."""
  cut, whole, rest = [], [], list(there)
  for entry in entries:
    if entry in ('{e}', '0'):
      cut.append(expert if entry == '{e}' else 0)
      whole.append(number if entry == '{e}' else 1)
      continue
    size = rest.pop(0)
    numbers = [int(n) for n in re.findall(r'\d+', entry)] or [0, 1]
    first, parts = numbers
    cut.append(slice(first, None, parts) if '::' in entry else slice(first * size, (first + 1) * size))
    whole.append(parts * size)
  return tuple(cut), (*whole, *rest)


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
    if not _is_stack(key, value):
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


def _is_stack(key, value):
  """Whether `value` are the segments of a stack; layers may call parts of their own so (`multihash`)."""
  units = next(iter(value.values())) if key == 'segments' else ()
  return 'blocks' in units or 0 in units                             # scanned, or a list of units


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
    if not _is_stack(key, value):
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
  wrong = [f'{name} is {list(shapes[name])}, not {list(place.whole)} ({place.name})'
           for name, place in by_tensor.items() if tuple(shapes[name]) != place.whole]
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
