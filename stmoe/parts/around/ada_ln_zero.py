"""adaLN-Zero: norms and residuals of a block, shifted, scaled and gated by a condition of the row (DiT)."""

from flax import nnx
import jax

from stmoe import axes
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import block as block_lib
from stmoe.parts import linear

CONDITION = 'condition'                  # given of every row, [B,1,D]: what an image is made of and when


class Modulation(nnx.Module):
  """n vectors of width D from the condition c of a row: SiLU(c) W + b, zero at first (arXiv:2212.09748)."""

  rows_per_sequence = 1

  def __init__(self, d_model: int, number: int, *, rngs):
    zeros = nnx.initializers.zeros
    self.w = axes.param(zeros, (d_model, number * d_model), 'embed', 'mlp', rngs=rngs)
    self.b = axes.param(zeros, (number * d_model,), 'mlp', rngs=rngs)

  def __call__(self, c: jax.Array) -> jax.Array:
    """Returns [B,1,n,D] for c [B,1,D]."""
    return linear.apply(jax.nn.silu(c), self.w, self.b).reshape(*c.shape[:-1], -1, c.shape[-1])


def shifted(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns x (1 + scale) + shift for x [B,T,D], shift and scale [B,1,D]."""
  return x * (1 + scale) + shift


class AdaLnZero(block_lib.Around):
  """x + g f(Norm(x) (1 + scale) + shift) for every sub-layer f of a block (DiT, arXiv:2212.09748).

  Shift, scale and gate g are of each sub-layer, linear in SiLU(c) and zero at first: the block then returns
  x. The condition c [B,1,D] of a row is given as `condition`.

  Args:
    block: recipe of a pre-norm block, whose norms have no learned vectors.
  """

  def __init__(self, d_model: int, *, block, rngs):
    self.block = block(d_model, rngs=rngs)
    if self.block.norm_place != 'input':
      raise UserError('around ada_ln_zero: the norms of this model come after the sub-layers, and what is '
                      "shifted is their input; nearest: model name='dit'")
    bare = [name for name in self.block.sub_layers() if getattr(self.block, f'{name}_norm') is None]
    if bare:
      raise UserError(f'around ada_ln_zero: the {bare[0]} of its block has no norm before it, and what is '
                      'shifted is the result of one; nearest: norm=True, and sub-layers without their own')
    self.modulation = Modulation(d_model, 3 * len(self.block.sub_layers()), rngs=rngs)

  def __call__(self, x: jax.Array, ctx: contract.Context,
               carry: contract.Carry) -> tuple[jax.Array, dict[str, contract.Aux], contract.Carry]:
    """Returns (x [B,T,D], aux: dict end of a name -> Aux, carry); see `block.Block`."""
    parts = self.modulation(ctx.known(CONDITION, 'around ada_ln_zero').astype(x.dtype))      # [B, 1, 3n, D]
    reports: dict[str, contract.Aux] = {}
    for number, name in enumerate(self.block.sub_layers()):
      shift, scale, gate = (parts[:, :, 3 * number + i] for i in range(3))         # [B, 1, D]
      normalized = shifted(getattr(self.block, f'{name}_norm')(x), shift, scale)
      with jax.named_scope(block_lib.SUB_LAYERS[name][1]):
        y, reported, carry = self.block.run(name, normalized, ctx, carry)
        x = self.block.added(name, x, gate * y, ctx)
      reports |= reported
    return x, reports, carry
