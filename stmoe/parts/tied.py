"""Arrays that layers of a stack have in common: the stack holds them once and lends them to every layer.

A part of a sub-layer, such as a router, is made whole. If it offers `ties`, a name and some attributes, these
are the same in all layers of a stack that tie them under that name. When the stack is made, it takes them out
of its layers (`take`) and holds those of the first layer as `tied.NAME`. In every forward it gives all layers
these (`lent`). A scan has them as constants: nothing is stacked, and their gradient is the sum over layers.
By itself, outside of a stack, the part computes the same.

Whole blocks tie, too (`whole`): all blocks of a letter are then one block, which a token passes several
times. A part of such a block may have arrays in common with other blocks as well.
"""

import typing

from flax import nnx
import jax

from stmoe import modules
from stmoe import router_state as state
from stmoe.core import checked
from stmoe.errors import UserError

Part = typing.TypeVar('Part', bound=nnx.Module)
BLOCK = 'block_'                     # before the letter, in the name under which whole blocks tie


class Held(nnx.Module):
  """What layers have in common under one name: attributes called as theirs are.

  label: of its parameters in section `groups` of a configuration, that of the layers' own; or None.
  uses:  how many layers have them.
  """

  def __init__(self, part: nnx.Module, attributes: typing.Iterable[str], label: str | None):
    for name in attributes:
      setattr(self, name, getattr(part, name))
    self.label = label
    self.uses = 0


def whole(block: typing.Any, letter: str) -> typing.Any:
  """Returns `block`, of which all arrays are tied under the name of its letter.

  The parts of it that offer `tied_as` know this name from then on.
  Raises UserError for a part with a state across steps, which each of the layers would change by its load.
  """
  for part in [part for _, part in modules.offering(block, 'commit')
               if jax.tree.leaves(nnx.state(part, state.RouterState))]:
    raise UserError(f'blocks.{letter}.tied: {checked.file(part)} remembers its load across steps, and layers '
                    f'of one block have each a load of their own; nearest: blocks.{letter}.tied=False')
  name = f'{BLOCK}{letter}'
  for _, part in modules.offering(block, 'tied_as'):
    part.tied_as = name
  kept = [key for key, value in vars(block).items() if isinstance(value, (nnx.Module, nnx.Variable))]
  block.ties = (name, tuple(kept))
  return block


def take(held: nnx.Dict, unit: nnx.Module, repeats: int | None) -> None:
  """Moves what parts of `unit` tie into `held`, dict name -> Held, in place.

  Args:
    repeats: leading axis of the arrays of a scanned unit, of which the first entry is held; None = no axis.
  Raises:
    UserError: the arrays of a name are not everywhere of one shape.
  """
  labels = modules.labels(unit)
  inner_first = sorted(modules.offering(unit, 'ties'), key=lambda pair: -len(pair[0]))
  for path, part in inner_first:         # tied blocks may have parts that tie by themselves
    name, attributes = part.ties
    tied_labels = [known for at, known in labels.items()
                   if at[:len(path)] == path and at[len(path)] in attributes]
    own = set.intersection(*tied_labels) if tied_labels else set()
    new = Held(part, attributes, next(iter(sorted(own - {'all', 'expert'})), None))
    new = new if repeats is None else _first(new)
    if name not in held:
      held[name] = new
    _check_same(part, name, held[name], new)
    held[name].uses += repeats or 1
    for attribute in attributes:
      delattr(part, attribute)


def lent(part: Part, held: nnx.Dict) -> Part:
  """Returns a copy of `part` in which layers have what is held for them; `part` itself where nothing is.

  held: dict name -> Held of the stack.
  """
  if not held:
    return part
  copy = jax.tree.map(lambda a: a, part)
  for _, borrower in modules.offering(copy, 'ties'):
    name, attributes = borrower.ties
    for attribute in attributes:
      array = getattr(held[name], attribute)
      setattr(borrower, attribute, lent(array, held) if isinstance(array, nnx.Module) else array)
  return copy


def _first(held):
  """`held` of the first layer of arrays [L,...]."""
  def one(variable):
    names = variable.get_metadata()['out_sharding']                  # 'layers' is the first of them
    return variable.replace(variable.get_value()[0], out_sharding=names[1:])

  graph, arrays = nnx.split(held)
  return nnx.merge(graph, jax.tree.map(one, arrays, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)))


def _check_same(part, name, held, new):
  flat = lambda one: nnx.to_flat_state(nnx.state(one))
  shapes = [{'.'.join(map(str, path)): checked.told(value) for path, value in flat(one)}
            for one in (held, new)]
  for key in sorted({*shapes[0], *shapes[1]}):
    first, second = (known.get(key, 'not there') for known in shapes)
    if first != second:
      raise UserError(f'{checked.file(part)}: layers have {key} of {name!r} in common, which is {first} in '
                      f'one of them and {second} in another; nearest: the same sizes, or another group')
