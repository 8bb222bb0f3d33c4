"""Denoising Task Routing: every noise level has its own fixed channels in a DiT block."""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import contract
from stmoe.parts import block as block_lib
from stmoe.parts.around import ada_ln_zero
from stmoe.parts.around import switch_dit


class DenoisingTaskRouting(block_lib.Around):
  """x' = Block(m x) + (1 - m) x with m [B,1,D] of the time, fixed (Switch-DiT's baseline, arXiv:2403.09176).

  m is a row of `switch_dit.prior_mask` with D units: a window of channels passes the block, which the others
  go by.

  Args:
    block: recipe of a block, which stands in `ada_ln_zero`.
    share: beta, the part of the channels in a window.
    alpha: of the mask.
  """

  def __init__(self, d_model: int, *, block, share: ranges.PartOf1 = 0.8, alpha: ranges.Positive = 4.0, rngs):
    self.block = ada_ln_zero.AdaLnZero(d_model, block=block, rngs=rngs)
    self.share = share
    self.alpha = alpha

  def __call__(self, x: jax.Array, ctx: contract.Context,
               carry: contract.Carry) -> tuple[jax.Array, dict[str, contract.Aux], contract.Carry]:
    """Returns (x [B,T,D], aux: dict end of a name -> Aux, carry); see `block.Block`."""
    time = ctx.known(switch_dit.TIME, 'around denoising_task_routing')                 # [B, 1]
    times = ctx.visible['times'].time                                # [T]
    mask = jnp.asarray(switch_dit.prior_mask(len(times), x.shape[-1], self.share, self.alpha))
    m = mask[switch_dit.nearest(times, time)][:, None].astype(x.dtype)             # [B, 1, D]
    return switch_dit.modulated(lambda x: self.block(x, ctx, carry), x, m)
