"""The layer of MoE++: zero, copy and constant experts, a scaled input, gating residuals over depth."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import lookup
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.layers import moe
from stmoe.routers import moe_plus_plus as router_lib
from stmoe.routers import wrappers

INIT = nnx.initializers.normal(0.02)


class MoEPlusPlus(nnx.Module):
  """A sparse layer with experts that cost nothing, and gating residuals over depth (arXiv:2410.07348).

  The logits of a layer are its own plus M times those of the layer of this kind and width before it,
  M [E+Z,E+Z]. The experts, virtual ones too, read k x where the router reads x.

  Args:
    d_model:  D.
    router:   recipe of the router moe_plus_plus; experts, executor, group_size: see `moe.Moe`.
    num_constant, num_copy, num_zero: virtual experts of each kind, numbered in this order after real ones.
    residual: whether logits get the gating residual.
    scaled:   whether experts read k x; not beside gates='chosen' in the released code.
  Differs: in the first layer M multiplies zeros, the released code skips it there.
  """

  def __init__(self, d_model: int, *, router: ranges.Named('router'), experts: ranges.Named('experts'),
               executor: ranges.Spelled('executor') = 'gather', group_size: ranges.Count | None = None,
               num_constant: ranges.Natural = 2, num_copy: ranges.Natural = 1, num_zero: ranges.Natural = 1,
               residual: ranges.Flag = True, scaled: ranges.Flag = True, rngs):
    numbers = dict(constant=num_constant, copy=num_copy, zero=num_zero)
    virtual = [lookup.recipe('virtual', dict(name=kind)) for kind, number in numbers.items()
               for _ in range(number)]
    self.moe = moe.Moe(d_model, router=with_zeros(router, num_zero), experts=experts,
                       executor=executor, group_size=group_size, virtual=virtual, rngs=rngs)
    self.width = wrappers.innermost(self.moe.router).num_experts + len(virtual)
    self.residual = axes.param(INIT, (self.width, self.width), 'unmodeled', 'unmodeled',
                               rngs=rngs) if residual else None
    self.scale = self.moe.router.k if scaled else 1
    self.memory = f'gate_residual_{self.width}'                      # in the carry

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the logits before the first layer, f32[B,T,E+Z] zeros; nothing without gating residuals."""
    if self.residual is None:
      return {}
    return {self.memory: jnp.zeros((*x.shape[:2], self.width), jnp.float32)}

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    ctx = ctx.replace(given=ctx.given | {'gate_input': x})
    if self.residual is None:
      return self.moe(self.scale * x, ctx, carry)
    added = jnp.einsum('bte,fe->btf', carry[self.memory], self.residual[...], precision='highest')
    ctx = ctx.replace(given=ctx.given | {router_lib.ADDED: added})
    y, aux, after = self.moe(self.scale * x, ctx, carry | {router_lib.SUM: added})
    logits = after.pop(router_lib.SUM)
    return y, aux, after | {self.memory: logits}


def with_zeros(router: typing.Callable, num_zero: int) -> typing.Callable:
  """Returns the recipe `router` of a router that knows how many virtual experts are zero experts."""
  inner = getattr(router, 'keywords', {}).get('inner')
  if inner is not None:
    return functools.partial(router, inner=with_zeros(inner, num_zero))
  if not lookup.takes(router, 'num_zero'):
    name = getattr(router, 'func', router).__module__.rpartition('.')[2]
    raise UserError(f"layer moe_plus_plus: router {name} leaves no zero experts out of its gates; nearest: "
                    "router.name='moe_plus_plus', or layer='moe' with the field `virtual`")
  return functools.partial(router, num_zero=num_zero)
