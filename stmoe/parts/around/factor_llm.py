"""FactorLLM's teacher: in training a block also runs on the states of the model before it was cut."""

from flax import struct
import jax

from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import block as block_lib

STREAM = 'factor_llm'                    # name in the carry of the teacher's states [B,T,D]


@struct.dataclass
class Teacher:
  """What a feed-forward layer sees whose input is the teacher's: it answers as the dense layer it was."""


class FactorLLM(block_lib.Around):
  """The block, and in training the teacher's block before it, which has the same attention and norms.

  The teacher is the dense model (FactorLLM, arXiv:2408.11855). Its states pass all blocks beside those of the
  model itself, without dropout and without a gradient. The losses that a layer reports of them become the
  losses of the block's own report. In evaluation the block runs once.

  It is the teacher as long as embedding, attention and norms are frozen, as `stmoe factorise` writes it.

  Args:
    block: recipe of the block.
  """

  def __init__(self, d_model: int, *, block, rngs):
    self.block = block(d_model, rngs=rngs)
    if 'cross' in self.block.sub_layers():
      raise UserError('around factor_llm: cross-attention sees the encoder of the model, not the one of its '
                      "teacher; nearest: prior='own' of the layers, without around")

  def __call__(self, x: jax.Array, ctx: contract.Context,
               carry: contract.Carry) -> tuple[jax.Array, dict[str, contract.Aux], contract.Carry]:
    """Returns (x [B,T,D], aux: dict end of a name -> Aux, carry); see `block.Block`."""
    if not ctx.train or STREAM not in carry:
      return self.block(x, ctx, carry)
    seen = (ctx.visible or {}) | dict(layer=Teacher())
    evaluated = ctx.replace(visible=seen, train=False, key=None)
    stream, judged, _ = self.block(jax.lax.stop_gradient(carry[STREAM]), evaluated, carry)
    x, reports, carry = self.block(x, ctx, carry)
    for end in judged.keys() & reports.keys():
      losses = reports[end].losses | judged[end].losses
      reports[end] = reports[end].replace(losses=losses)
    return x, reports, carry | {STREAM: stream}
