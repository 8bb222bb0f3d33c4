"""Hidden states of a model: stacks report them, or put others in their place, where somebody asks.

`modules.showing` asks for hidden states, and `apart` tells them from what layers report. `modules.edited`
says what is done to states, and to outputs of sub-layers.
"""

from collections.abc import Callable
from collections.abc import Sequence
import typing

from flax import struct
import jax
import jax.numpy as jnp

from stmoe import errors

END = '.hidden'                          # of the name of a block, under which its state is reported


class Hidden(struct.PyTreeNode):
  """The state after a block: x [B,T,D], and mask bool[B,T], True = real token.

  The state is the residual stream as the block leaves it. That of the last block is what the stack's final
  norm gets.
  """
  x: jax.Array
  mask: jax.Array


def apart(reported: dict) -> tuple[dict, dict[str, Hidden]]:
  """Returns (aux: dict layer -> Aux, dict name of a block -> Hidden [B,T,D]) of what a model reported."""
  aux = {name: value for name, value in reported.items() if not isinstance(value, Hidden)}
  return aux, {name.removesuffix(END): value for name, value in reported.items() if name not in aux}


class Edit(typing.NamedTuple):
  """What is done to one array of a forward pass: it becomes `function` of itself.

  block:    its index in its stack.
  end:      of the array's name: END of the state after the block, else of a sub-layer's output.
  name:     of the array, for messages.
  function: y [B,T,D] -> [B,T,D], of operations that JAX compiles.
  """
  block: int
  end: str
  name: str
  function: Callable[[jax.Array], jax.Array]


def changer(edits: Sequence[Edit],
            index: jax.Array | int) -> Callable[[str, jax.Array], jax.Array] | None:
  """Returns the function (end, y [B,T,D]) -> y after the edits of block `index`; None where there are none.

  Args:
    edits: of block `index`, and maybe of other blocks.
    index: i32[], traced where layers are scanned: an edit is then computed in all repetitions of its block,
      and used in its own.
  """
  def change(end, y):
    for edit in edits:
      if edit.end == end:
        y = jnp.where(edit.block == index, _checked(edit, y), y)
    return y
  return change if edits else None


def _checked(edit, y):
  """What the function of an Edit returns for y, in its dtype; UserError for another shape."""
  new = jnp.asarray(edit.function(y))
  if new.shape != y.shape:
    raise errors.UserError(f'edit of {edit.name!r}: it is {list(y.shape)}, and the function returned '
                           f'{list(new.shape)}')
  return new.astype(y.dtype)
