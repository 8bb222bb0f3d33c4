"""What banks of networks with a context have in common: which context an expert reads, and how rows pass."""

import typing

from flax import nnx
import jax

from stmoe import axes
from stmoe.core import contract
from stmoe.core.units import conditions


def maker(num_experts: int, identical: bool, rngs: nnx.Rngs) -> typing.Callable:
  """Returns the function (init, *shape) -> a parameter [E,*shape]; `identical` as in `conditions.alike`."""
  def made(init, *shape):
    names = ('expert', *['unmodeled'] * len(shape))
    return axes.param(conditions.alike(init, identical), (num_experts, *shape), *names, rngs=rngs)
  return made


class Bank(nnx.Module):
  """A bank whose experts read a state and a context; `one` of a subclass computes the rows of one expert."""

  def condition(self, made: typing.Callable, num_experts: int, context: int, part: int, split: bool,
                shift: bool) -> None:
    """Gives the bank C and c, and each expert's shift and number where it has one."""
    self.shift = made(nnx.initializers.zeros, 1) if shift and context else None
    self.number = axes.state(conditions.numbers(num_experts), 'expert', 'unmodeled') if split else None
    self.context, self.part = context, part

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs: [.,n+C] -> [.,n] in the same layout."""
    leaves, tree = jax.tree.flatten(self)
    return rows.each(lambda x, *arrays: jax.tree.unflatten(tree, arrays).one(x), *leaves)

  def parted(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (states [R,n], contexts [R,c]) of rows of the only expert left; see `conditions.parted`."""
    read = lambda array: None if array is None else array[...]
    return conditions.parted(rows, self.context, self.part, read(self.number), read(self.shift))
