"""MoEUT's attention: SwitchHead whose values are of what is not normalised (arXiv:2405.16039)."""

import typing

import jax

from stmoe import ranges
from stmoe.attention import switch_head
from stmoe.core import contract
from stmoe.layers import moeut
from stmoe.parts import norm
from stmoe.routers import wrappers


class MoEUT(switch_head.SwitchHead):
  """SwitchHead of x: queries, keys and both selections read LN(x), values read x (arXiv:2405.16039).

  In a block that is `tied`, the loss `entropy` of a selection is of all passes through the layer together.

  Args:
    d_model, num_heads, head_dim, router, mixed, nope_dim, executor, group_size, dropout_rate, init_scale:
      see `switch_head.SwitchHead`. With one expert a head the released code has mixed=('o',).
  Losses: those of the router, of the values' and of the outputs' selection.
  """

  normalizes = True
  tied_as = ''

  def __init__(self, d_model: int, *, num_heads, head_dim, router: ranges.Named('router'),
               mixed: ranges.Many(ranges.Choice('v', 'o'), least=1) = ('v', 'o'),
               nope_dim: ranges.Natural = 0, executor: ranges.Spelled('executor') = 'blocks',
               group_size: ranges.Count | None = None, dropout_rate=0.0, init_scale=1.0, rngs):
    super().__init__(d_model, num_heads=num_heads, head_dim=head_dim, router=router, mixed=mixed,
                     nope_dim=nope_dim, executor=executor, group_size=group_size, dropout_rate=dropout_rate,
                     init_scale=init_scale, rngs=rngs)
    self.norm = norm.LayerNorm(d_model, rngs=rngs)

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the memory of no pass, f32 zeros [B,T,H,E] and [B,T]; nothing where layers share nothing."""
    carry: dict[str, jax.Array] = {}
    for part in self.reports:
      experts = self._heads(part).num_experts
      carry |= moeut.memory(self._memory(part), x, self.num_heads, experts)
    return carry

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], dict of Aux, carry) for x [B,T,D], which no norm of the block has changed."""
    read = self.norm(x)
    y, reported, carry = self.attend(read, x, ctx, carry)
    aux = typing.cast(dict[str, contract.Aux], reported)
    for part in self.reports if self.tied_as else ():
      logits = jax.vmap(lambda router: router.logits(read, ctx), out_axes=2)
      aux[part], carry = moeut.over_passes(aux[part], logits(self._heads(part)), ctx, carry,
                                           self._memory(part))
    return y, aux, carry

  def _heads(self, part):
    """The routers of all heads, arrays [H,...], of the values 'v' or the outputs 'o'."""
    return wrappers.innermost(getattr(self, part).router).heads

  def _memory(self, part):
    """The name of the memory of passes of a part; '' where layers share nothing."""
    return self.tied_as and f'{self.tied_as}.attention.{part}'
