"""MixER's layer: an expert for every context, which is what the router reads (arXiv:2502.05335)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import ranges
from stmoe.core import banks
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core.transport import layouts
from stmoe.errors import UserError
from stmoe.layers import moe


class Mixer(nnx.Module):
  """Predictions [D] of experts that read a token and its context, less the token, which the block adds again.

  The router sees the context alone, `given['context']` [B,1,C] or [B,T,C]. Experts get rows [D+C], tokens
  with their contexts. So with `ode` experts a token is a trajectory [T n] whose first n numbers are its first
  state, and the block's output is the trajectory. With `shplrnn` experts a token is a sequence.

  In training, a router that `learns_from_errors` is given what every expert alone would miss of
  `given['wanted']` [B,T,D]: the mean squared error, without gradient.

  Args:
    d_model:  D.
    context:  C.
    router:   recipe of a router on contexts of width C. With `mixer` the gate is fitted. A router with
      weights that have a gradient, such as `switch`, is a gate that gradients train.
    experts:  recipe of an expert bank of rows [.,D+C] with the field `context`.
    executor, group_size: see `moe.Moe`.
  Losses: those of the router.
  """

  normalizes = True                        # tokens are states, which no norm may scale

  def __init__(self, d_model: int, *, context: ranges.Count, router: ranges.Named('router'),
               experts: ranges.Named('experts'), executor: ranges.Spelled('executor') = 'gather',
               group_size: ranges.Count | None = None, rngs):
    if not lookup.takes(experts, 'context'):
      kind = getattr(experts, 'func', experts).__name__
      raise UserError(f'layer mixer: experts {kind} have no field context; nearest: ode, {kind} as inner')
    self.router = checked.built(router, context, rngs)
    self.experts = banks.made(experts, d_model + context, num_experts=self.router.num_experts, out=d_model,
                              context=context, rngs=rngs)
    self.d_model = context                 # the width that the router reads
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]; aux.records has the experts' weights, choice [B,T,E]."""
    context = ctx.known('context', 'layer mixer')
    context = jnp.broadcast_to(context, (*x.shape[:2], context.shape[-1])).astype(x.dtype)
    rows = jnp.concatenate([x, context], axis=-1)                    # [B, T, D+C]
    if ctx.train and contract.offered(self.router, 'learns_from_errors') and 'wanted' in ctx.given:
      ctx = ctx.replace(given=ctx.given | dict(errors=self.errors(rows, ctx)))
    groups = moe.grouped(self, context, ctx, carry)
    routed = groups.route(self.router)
    y = groups.execute(groups.of(rows), routed.assignment, self.experts, groups.key('experts'))
    choice = jnp.sum(routed.assignment.masks()[1], axis=-1)          # [G, S, E]
    recorded = routed.aux.recorded(choice=groups.tokens(choice))
    y, aux, carry = groups.answer(y, routed.replace(aux=recorded))
    return y - x, aux, carry

  def errors(self, rows: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[B,T,E], the error of each expert on rows [B,T,D+C]; 0 where the router is not due."""
    number, flat = self.router.num_experts, rows.reshape(-1, rows.shape[-1])

    def measured():
      every = axes.constrain(jnp.broadcast_to(flat, (number, *flat.shape)), 'expert', None, None)
      made = self.experts(layouts.Buckets(every)).x.reshape(number, *rows.shape[:2], -1)
      missed = made - ctx.given['wanted']
      return jnp.moveaxis(jnp.mean(jnp.square(missed.astype(jnp.float32)), axis=-1), 0, -1)
    none = lambda: jnp.zeros((*rows.shape[:2], number))
    return jax.lax.stop_gradient(jax.lax.cond(self.router.learns_from_errors(ctx.step), measured, none))
