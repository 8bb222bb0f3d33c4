"""Models that report what a calibration collects: routers and dense layers that look at their tokens."""

from collections.abc import Sequence

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import modules
from stmoe.core import assignment
from stmoe.core import checked
from stmoe.core import contract
from stmoe.derive.calibration import items as items_lib
from stmoe.routers import wrappers


class Watch(wrappers.Wrapper):
  """The router `inner`, which also collects `names` of `items.ITEMS` into Aux.records, [G,...] of groups.

  bank: the layer's experts.
  """

  def __init__(self, inner, bank, names):
    self.inner, self.bank, self.names = inner, bank, names
    self.num_experts = inner.num_experts

  def __call__(self, x, ctx, carry):
    """Returns Routed for x [G,S,D]."""
    routed = checked.route(self.inner, x, ctx, carry)
    items = {name: items_lib.ITEMS[name] for name in self.names if items_lib.ITEMS[name]}
    logits = self._logits(x, ctx, items)
    weights, taken = self._edges(routed.assignment, items, logits.shape)
    bank, mask = self.bank, ctx.mask.astype(jnp.float32)
    k, share = contract.offered(self.inner, 'k') or 1, items_lib.BALANCE / self.num_experts
    even = items_lib.balanced(taken, int(k * share * x.shape[1]))

    def sums_of(group):
      seen = items_lib.Seen(*group, bank)
      return {name: item(seen) for name, item in items.items()}
    # One group after the other: the outputs of all experts are large.
    sums = jax.lax.map(sums_of, (x.astype(jnp.float32), mask, logits, weights, taken, even))
    return routed.replace(aux=routed.aux.recorded(**sums))

  def _logits(self, x, ctx, items):
    """f32[G,S,E]; 0 for a router without logits, where nobody asks for them."""
    logits = contract.offered(self.inner, 'logits')
    if logits is None:
      if items_lib.OF_LOGITS & {*items}:
        raise errors.UserError(f'{checked.file(self.inner)} offers no logits, by which experts are compared')
      return jnp.zeros((*x.shape[:2], self.num_experts))
    return logits(x, ctx)[..., :self.num_experts]

  def _edges(self, a, items, shape):
    """(f32[G,S,E] weights, f32[G,S,E] 1 where an expert computes a token); `shape` is G, S, E."""
    zeros = jnp.zeros(shape)
    if isinstance(a, assignment.SoftAssignment):
      if items_lib.OF_EDGES & {*items}:
        raise errors.UserError('a router that mixes all tokens does not say which tokens an expert computes')
      return zeros, zeros
    live = assignment.live(a)                                        # [G, N]
    at = (jnp.arange(shape[0])[:, None], a.token, a.expert)          # out of bounds: dead, virtual edges
    return (zeros.at[at].add(jnp.where(live, a.weight, 0), mode='drop'),
            zeros.at[at].max(live.astype(jnp.float32), mode='drop'))


class Units(nnx.Module):
  """The dense `layer` of a block, which also collects `names` of `items.UNITS` into Aux.records, [1,...]."""

  def __init__(self, layer, names):
    self.layer, self.names = layer, names

  def __call__(self, x, ctx, carry):
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    y, _, carry = self.layer(x, ctx, carry)
    hidden = jnp.where(ctx.mask[..., None], self.layer.hidden(x).astype(jnp.float32), 0)
    records = {name: items_lib.UNITS[name](hidden, ctx.mask)[None] for name in self.names}
    return y, contract.Aux(losses={}, load=jnp.zeros(0), metrics={}, records=records), carry


def watched(model: nnx.Module, names: Sequence[str]) -> nnx.Module:
  """Returns a copy of `model`, with the same arrays, whose layers collect `names`.

  Sparse layers of one bank collect those of `items.ITEMS`, dense layers of blocks those of `items.UNITS`.
  """
  model = nnx.merge(*nnx.split(model))
  units = tuple(name for name in names if name in items_lib.UNITS)
  items = tuple(name for name in names if name in items_lib.ITEMS)
  for owner in modules.sparse(model) if items else ():
    if callable(getattr(owner, 'experts', None)):
      owner.router = Watch(owner.router, owner.experts, items)
  for _, block in list(modules.offering(model, 'layer')) if units else ():
    if 'layer' in vars(block) and hasattr(block.layer, 'hidden'):
      block.layer = Units(block.layer, units)
  return model
