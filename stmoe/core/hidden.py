"""Hidden states of a model: stacks report them beside what layers report, where somebody asks.

`modules.showing` asks for hidden states, and `apart` tells them from what layers report.
"""

from flax import struct
import jax

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
