"""MoEUT's sparse layer: the router reads what is normalised, experts what is not (arXiv:2405.16039)."""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import balance
from stmoe.core import contract
from stmoe.layers import moe
from stmoe.parts import norm


def memory(name: str, x: jax.Array, heads: int, experts: int) -> dict[str, jax.Array]:
  """Returns what is remembered below the first pass: sums f32[B,T,H,E] and numbers f32[B,T], zeros."""
  if not name:
    return {}
  zeros = lambda *shape: jnp.zeros((*x.shape[:2], *shape), jnp.float32)
  return {name: zeros(heads, experts), f'{name}.passes': zeros()}


def over_passes(aux: contract.Aux, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
                name: str) -> tuple[contract.Aux, contract.Carry]:
  """Returns (aux, carry): the loss `entropy` of `aux` is of all passes so far, see `balance.passes`.

  Args:
    logits: f32[B,T,H,E] of the routers of H heads, over which the loss is a mean.
    name:   of the memory of these passes, see `memory`; '' = layers share nothing, `aux` stays as it is.
  """
  if not name or 'entropy' not in aux.losses:
    return aux, carry
  layer = {name: jax.nn.softmax(logits, axis=-1), f'{name}.passes': jnp.ones(ctx.mask.shape)}
  sums = {key: carry[key] + of_layer for key, of_layer in layer.items()}
  sequence = balance.sequences(ctx.segments, ctx.positions)

  def total(sums):
    of_head = lambda p: balance.passes(p, sums[f'{name}.passes'], ctx.mask, sequence, ctx.tokens)
    return jnp.mean(jax.vmap(of_head, in_axes=2)(sums[name]))        # over [H]
  entropy = total(sums) - total(carry)
  return aux.replace(losses=aux.losses | dict(entropy=entropy)), carry | sums


class MoEUT(moe.Moe):
  """A sparse layer of x that is chosen by LN(x): norms only before a sigmoid or softmax (arXiv:2405.16039).

  y = sum_I s_e expert_e(x), with s = sigmoid(LN(x) W) of the router `sigma_moe`. So nothing normalises the
  residual stream on its way ("peri-layernorm"). In a block that is `tied`, the router's loss `entropy` is of
  all passes through the layer together.

  Args:
    d_model, router, experts, executor, group_size: see `moe.Moe`.
  Losses: those of the router.
  Differs: the memory of the passes is f32[B,T,E] for every tied block, sums of tokens' probabilities. The
    code keeps the logits of all passes. Sequences count by their tokens, as in `sigma_moe`.
  """

  normalizes = True
  tied_as = ''

  def __init__(self, d_model: int, *, router: ranges.Named('router'), experts: ranges.Named('experts'),
               executor: ranges.Spelled('executor') = 'gather', group_size: ranges.Count | None = None, rngs):
    super().__init__(d_model, router=router, experts=experts, executor=executor, group_size=group_size,
                     rngs=rngs)
    self.norm = norm.LayerNorm(d_model, rngs=rngs)

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the memory of no pass, f32 zeros [B,T,1,E] and [B,T]; nothing where layers share nothing."""
    return memory(self.tied_as, x, 1, self.router.num_experts)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D], which no norm of the block has changed."""
    read = self.norm(x)
    y, aux, carry = self.chosen_by(read, x, ctx, carry)
    assert isinstance(aux, contract.Aux)                             # of one router
    if self.tied_as and 'entropy' in aux.losses:
      logits = self.router.logits(read, ctx)[:, :, None]             # [B, T, 1, E]
      aux, carry = over_passes(aux, logits, ctx, carry, self.tied_as)
    return y, aux, carry
