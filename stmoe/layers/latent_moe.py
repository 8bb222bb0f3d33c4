"""LatentMoE: routed experts that live in a narrower space than the model (Nemotron 3, arXiv:2512.20856)."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import lookup
from stmoe import ranges
from stmoe.core import banks
from stmoe.core import checked
from stmoe.core import contract
from stmoe.layers import moe
from stmoe.parts import linear


class LatentMoe(nnx.Module):
  """(sum_e w_e expert_e(x W1)) W2, where w are the gates of x itself (arXiv:2512.20856, section 2.2).

  W1 [D,l] and W2 [l,D] are shared by all experts and have no biases. A token is projected once, before
  dispatch, and once after its experts' outputs are combined: experts and what is exchanged between devices
  are D / l times smaller, so that there may be more of them. Nemotron has `shared.Shared` around this layer,
  whose expert has the model's width.

  Args:
    d_model:    D.
    latent:     l, the width of what experts take and return.
    router:     recipe of a router on the model's width D.
    experts:    recipe of an expert bank of width l.
    executor, group_size: see `moe.Moe`.
    init_scale: variance scale s of sqrt(s / fan_in) of W1 and W2.
  Differs: the source does not say how W1 and W2 begin.
  """

  def __init__(self, d_model: int, *, latent: ranges.Count, router: ranges.Named('router'),
               experts: ranges.Named('experts'), executor: ranges.Spelled('executor') = 'gather',
               group_size: ranges.Count | None = None, init_scale: ranges.Positive = 1.0, rngs):
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'truncated_normal')
    self.router = checked.built(router, d_model, rngs)
    self.inward = axes.param(init, (d_model, latent), 'embed', 'unmodeled', rngs=rngs)
    self.experts = banks.made(experts, latent, num_experts=self.router.num_experts, rngs=rngs)
    self.outward = axes.param(init, (latent, d_model), 'unmodeled', 'embed', rngs=rngs)
    self.d_model = d_model
    self.group_size = group_size
    self.executor = executor
    lookup.executor(executor)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    groups = moe.grouped(self, x, ctx, carry)
    routed = groups.route(self.router)
    h = linear.apply(groups.x, self.inward)                          # [G, S, l]
    o = groups.execute(h, routed.assignment, self.experts, groups.key('experts'))
    return groups.answer(linear.apply(o, self.outward), routed)      # y [B, T, D]
