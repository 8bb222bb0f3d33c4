"""Routers around a router, their `inner`: one file each, found by its name as routers are.

In a configuration they are `router=dict(name='remap', ..., inner=dict(name='st_moe', ...))`. Around the
routers of a model that exists `stmoe.modules.wrapped` puts them. Wrappers go around wrappers.
"""

import typing

from flax import nnx
import jax

from stmoe.core import checked
from stmoe.core import contract
from stmoe.errors import UserError


def _of_inner(name):
  return property(lambda self: contract.offered(self.inner, name))


def innermost(router: typing.Any) -> typing.Any:
  """Returns the router that `router` is around, or itself: wrappers pass on its logits f32[G,S,E]."""
  while hasattr(router, 'inner'):
    router = router.inner
  return router


class Wrapper(nnx.Module):
  """A router that changes or records what `inner` answers: `answer`. A wrapper goes around any router.

  A wrapper offers what `inner` offers (`contract.OFFERS`).

  Args:
    inner: recipe of the router that is wrapped.
  """

  k, normalize_gates, reach = _of_inner('k'), _of_inner('normalize_gates'), _of_inner('reach')
  capacity_factor, draws_at_eval = _of_inner('capacity_factor'), _of_inner('draws_at_eval')
  gates_sum, logits, num_virtual = _of_inner('gates_sum'), _of_inner('logits'), _of_inner('num_virtual')

  def __init__(self, d_model: int, *, inner, rngs):
    self.inner = checked.built(inner, d_model, rngs)
    self.num_experts = self.inner.num_experts

  def answer(self, routed: contract.Routed) -> contract.Routed:
    """Returns the Routed that this router makes of the Routed of `inner`."""
    return routed

  @property
  def decide(self) -> typing.Callable[..., contract.Routed] | None:
    """`decide` of `inner` with its answer changed, or None if `inner` has none."""
    inner = contract.offered(self.inner, 'decide')
    return inner and (lambda *args, **kwargs: self.answer(inner(*args, **kwargs)))

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.answer(checked.route(self.inner, x, ctx, carry))


class Deciding(Wrapper):
  """A router that comes between the logits and the decision of `inner`; subclasses say where.

  Raises UserError for an `inner` that is not in these two parts (`logits` and `decide`).
  """

  needs = 'no logits and decision of its own'

  def __init__(self, d_model: int, *, inner, rngs):
    super().__init__(d_model, inner=inner, rngs=rngs)
    if contract.offered(self.inner, 'decide') is None:
      name = type(self.inner).__module__.rpartition('.')[2]
      raise UserError(f"router {name} has {self.needs}; nearest: router name='st_moe'")

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] of `inner` for x [G,S,D]."""
    return self.inner.logits(x, ctx)

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns the Routed of `inner` for logits f32[G,S,E]."""
    return self.inner.decide(logits, ctx, carry, choose)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
