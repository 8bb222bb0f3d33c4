"""Fewer experts in a layer: what its router has of experts is cut or averaged; numbers may differ by layer.

Layers of one letter have one number of experts. `apart` gives layers of another number another letter. Such
a stack is computed by what repeats in its new pattern: with all numbers different no two blocks are scanned.
No expert is stored that no layer has.
"""

from collections.abc import Callable
from collections.abc import Iterator
import string

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe.core import contract
from stmoe.surgery import layout
from stmoe.surgery import sparse

LETTERS = [*string.ascii_letters, *filter(str.isalpha, map(chr, range(0x100, 0x250)))]      # of new blocks


def check(layer: sparse.Layer, params: dict, number: int, keep: float) -> None:
  """Raises UserError for a router whose experts cannot become `number` by changing its arrays."""
  router, name = layer.module.router, type(layer.module.router).__module__.rpartition('.')[2]
  k = contract.offered(router, 'k') or 1
  if number < k:
    raise errors.UserError(f'keep={keep} leaves {number} of {layer.num_experts} experts in {layer.where}, '
                           f'and a token has {k}; nearest: keep={k / layer.num_experts:g}')
  if hasattr(router, 'inner'):
    raise errors.UserError(f'{layer.where}.router is {name}, around another router; nearest: the run before '
                           'that')
  if contract.offered(router, 'reach') not in (None, layer.num_experts):
    raise errors.UserError(f'{layer.where}.router: a token of {name} chooses within groups of experts, which '
                           'would be other groups then; nearest: merge')
  _check_ties(layer, params, name)
  for path, array in layer.arrays(params, 'router').deferred().items():
    if array.ndim and jnp.issubdtype(array.dtype, jnp.integer):
      raise errors.UserError(f'{layer.where}.router: {".".join(map(str, path))} of {name} is a table of '
                             'experts, which does not say who comes instead of one; nearest: merge')


def _check_ties(layer, params, name):
  """Raises UserError if the router has arrays of experts that other layers have, too."""
  ties = contract.offered(layer.module.router, 'ties')
  if ties is None:
    return
  held = layout.at(params, (*layer.path[:layer.path.index('layers')], 'tied', ties[0]))
  if any(layer.num_experts in array.shape for array in jax.tree.leaves(held)):
    raise errors.UserError(f'{layer.where}.router: {name} has arrays of experts in common with other layers, '
                           'of which each would lose others; nearest: merge')


def columns(layer: sparse.Layer, new: sparse.Layer, params: dict) -> Iterator[tuple]:
  """Yields (path, array, axes) of the arrays of a router: `axes` are those of experts.

  An axis of experts is an axis that is shorter in `new`, the layer with E' experts. Entries behind the E
  experts there, such as virtual experts, are nobody's.
  """
  gone = layer.num_experts - new.num_experts
  for path, array in layer.arrays(params, 'router').items():
    _, shape = new.axes('router')[path]
    of_experts = [axis for axis, (size, fewer) in enumerate(zip(array.shape, shape, strict=True))
                  if size != fewer]
    for axis in of_experts:
      if array.shape[axis] - shape[axis] != gone or array.shape[axis] < layer.num_experts:
        raise errors.UserError(f'{layer.where}.router: {".".join(map(str, path))} has {array.shape[axis]} '
                               f'entries with {layer.num_experts} experts, {shape[axis]} with '
                               f'{new.num_experts}; nearest: merge')
    yield path, array, of_experts


def rows(layer: sparse.Layer, params: dict, config: ml_collections.ConfigDict) -> np.ndarray:
  """Returns f64[E,N]: all that the router has of each expert.

  Raises UserError for a router that has nothing of experts, or no form with one expert less.
  """
  new, parts = without_one(layer, config), []
  for _, array, of_experts in columns(layer, new, params):
    for axis in of_experts:
      entries = np.moveaxis(np.asarray(array, np.float64), axis, 0)[:layer.num_experts]
      parts.append(entries.reshape(layer.num_experts, -1))
  if not parts:
    raise errors.UserError(f'{layer.where}.router has no numbers of experts, by which they could be compared')
  return np.concatenate(parts, 1)


def without_one(layer: sparse.Layer, config: ml_collections.ConfigDict) -> sparse.Layer:
  """Returns `layer` with one expert less: beside it, `columns` tells which axes are of experts."""
  fewer = sparse.changed(config, {f'{layer.where}.router.num_experts': layer.num_experts - 1})
  return next(peer for peer in sparse.found(fewer) if peer.path == layer.path)


def cut(layer: sparse.Layer, new: sparse.Layer, params: dict, stay: np.ndarray) -> dict[tuple, jax.Array]:
  """Returns dict path -> array [...] of the router for the experts `stay` i[E'] of E; see `columns`."""
  return _changed(layer, new, params, lambda array, axis: array.take(stay, axis=axis))


def averaged(layer: sparse.Layer, new: sparse.Layer, params: dict,
             shares: np.ndarray) -> dict[tuple, jax.Array]:
  """Returns dict path -> array [...] of the router, experts averaged with `shares` f[E',E]; see `columns`.

  Whole numbers, such as counts, are cut: each new expert has the number of its largest share.
  """
  def average(array, axis):
    if not jnp.issubdtype(array.dtype, jnp.floating):
      return array.take(shares.argmax(1), axis=axis)
    return jnp.moveaxis(mixed(shares, jnp.moveaxis(array, axis, 0)), 0, axis)
  return _changed(layer, new, params, average)


def _changed(layer, new, params, change: Callable):
  """Dict path -> array of the router, `change`(entries of the E experts, axis) in place of the entries."""
  made = {}
  for path, array, of_experts in columns(layer, new, params):
    for axis in of_experts:
      experts, others = jnp.split(array, [layer.num_experts], axis)
      array = jnp.concatenate([change(experts, axis), others], axis)
    made[(*layer.path, 'router', *path)] = array
  return made


def shares(members: list[list[int]], weights: np.ndarray) -> np.ndarray:
  """Returns f64[E',E]: the part that each of E experts has in each of E' groups, by weights f[E].

  A group whose weights are all 0 has equal parts.

  >>> shares([[0, 2], [1]], np.array([1.0, 5.0, 3.0])).tolist()
  [[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]
  """
  parts = np.zeros((len(members), len(weights)))
  for group, experts in enumerate(members):
    own = weights[experts] if weights[experts].sum() else np.ones(len(experts))
    parts[group, experts] = own / own.sum()
  return parts


def mixed(parts: np.ndarray, array: jax.Array) -> jax.Array:
  """Returns [E',...]: the sums of array [E,...] with `parts` f[E',E]; one expert alone stays as it is."""
  made = []
  for row in parts:
    experts = np.flatnonzero(row)
    own = jnp.asarray(row[experts], array.dtype)
    made.append(array[experts[0]] if len(experts) == 1 and row[experts[0]] == 1 else
                jnp.tensordot(own, array[experts], 1, precision='highest'))
  return jnp.stack(made)


def apart(config: ml_collections.ConfigDict, layers: list[sparse.Layer],
          numbers: dict[tuple, int]) -> dict[str, object]:
  """Returns changes of `config` with which every layer has its own number of experts.

  Args:
    numbers: dict path of a layer -> its number. Layers of one letter and one number keep one letter.
  """
  changes: dict[str, object] = {}
  own: dict[tuple, str] = {}             # (letter, number) -> the letter that has this number
  free = (letter for letter in LETTERS if letter not in config.blocks)
  renamed: dict[tuple, str] = {}         # (stack, block) -> its letter from here on
  for layer in layers:
    _, letter, *inside = layer.where.split('.')
    number, begun = numbers[layer.path], {known for known, _ in own}
    if (letter, number) not in own:
      own[letter, number] = next(free) if letter in begun else letter
      field = '.'.join([*inside, 'router', 'num_experts'])
      if letter not in begun:
        changes[f'blocks.{letter}.{field}'] = number
      else:
        block = sparse.changed(config.blocks[letter], {field: number})
        changes[f'blocks.{own[letter, number]}'] = block.to_dict()
    renamed[block_of(layer)] = own[letter, number]
  return changes | _patterns(config, renamed)


def block_of(layer: sparse.Layer) -> tuple[str, int]:
  """Returns (stack, number) of the block in which a layer is."""
  at = layer.path.index('layers')
  return layer.path[at - 1], layer.path[at + 1]


def _patterns(config, renamed):
  """Changes of the patterns of stacks in which a block has another letter."""
  changes = {}
  for stack in sorted({stack for stack, _ in renamed}):
    field = stack if stack in config.model else 'layers'
    before = ''.join(letters * repeats for letters, repeats in config.model[field])
    after = ''.join(renamed.get((stack, number), letter) for number, letter in enumerate(before))
    if after != before:
      changes[f'model.{field}'] = (repeated(after),)
  return changes


def repeated(letters: str) -> tuple[str, int]:
  """Returns (unit, repeats) of `letters`, the unit being the shortest.

  >>> repeated('dmdm'), repeated('dmdn')
  (('dm', 2), ('dmdn', 1))
  """
  sizes = [size for size in range(1, len(letters) + 1) if letters[:size] * (len(letters) // size) == letters]
  return letters[:sizes[0]], len(letters) // sizes[0]
