"""A parallel block: attention and the feed-forward layer read the same normalised input (GPT-J, PaLM)."""

import jax

from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import block as block_lib


class Parallel(block_lib.Around):
  """y = x + Attention(Norm(x)) + Layer(Norm(x)), with one norm (PaLM, arXiv:2204.02311, section 2).

  The norm is that of the block's attention. Blocks of models that were trained so must stay so: another order
  of the sub-layers is another function.

  Args:
    block: recipe of a pre-norm block of self-attention and a feed-forward layer.
  """

  def __init__(self, d_model: int, *, block, rngs):
    self.block = block(d_model, layer_norm=False, rngs=rngs)
    names = list(self.block.sub_layers())
    if names != ['attention', 'layer']:
      raise UserError(f'around=parallel: a block of {" and ".join(names)} is not attention beside a '
                      'feed-forward layer; nearest: leave `around` out')
    if self.block.norm_place != 'input':
      raise UserError('around=parallel: the norms of this model come after the sub-layers, and parallel '
                      'sub-layers share the norm before them; nearest: leave `around` out')
    if self.block.attention_norm is None:
      raise UserError('around=parallel: the attention of this block normalises its input itself, and '
                      "parallel sub-layers share a norm of the block; nearest: attention name='attention'")

  def __call__(self, x: jax.Array, ctx: contract.Context,
               carry: contract.Carry) -> tuple[jax.Array, dict[str, contract.Aux], contract.Carry]:
    """Returns (x [B,T,D], aux: dict end of a name -> Aux, carry); see `block.Block`."""
    normalized = self.block.attention_norm(x)
    reports: dict[str, contract.Aux] = {}
    for name in self.block.sub_layers():
      with jax.named_scope(block_lib.SUB_LAYERS[name][1]):
        y, reported, carry = self.block.run(name, normalized, ctx, carry)
        x = self.block.added(name, x, y, ctx)
      reports |= reported
    return x, reports, carry
