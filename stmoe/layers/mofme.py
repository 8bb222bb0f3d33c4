"""MoFME: experts modulate features that one network computes for all of them (arXiv:2312.16610)."""

from flax import nnx
import jax

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import activations
from stmoe.layers import dense
from stmoe.layers import moe
from stmoe.parts import linear
from stmoe.parts import norm


class MoFME(moe.Moe):
  """adaptor(sum_e w_e expert_e(u)), u = act(LN(x) P + p) * (LN(x) Q + q), where w are the gates of x itself.

  The layer has its own norm, since the router reads the residual stream x as it is. The adaptor is a dense
  layer after the experts' outputs are added up.

  Args:
    d_model:      D.
    d_ff:         F, width of the adaptor; the paper has 4 D.
    router, experts, executor, group_size, virtual: see `moe.Moe`; experts 'film'. The released code's expert
      0 is act(u) and its last expert is dead: one expert fewer, and virtual=('activated',) (u).
    activation:   of u and of the adaptor.
    epsilon:      of the norm.
    dropout_rate: in the adaptor, one mask per image.
  """

  normalizes = True

  def __init__(self, d_model: int, *, d_ff: ranges.Count, router: ranges.Named('router'),
               experts: ranges.Named('experts'), executor: ranges.Spelled('executor') = 'gather',
               group_size: ranges.Count | None = None,
               virtual: ranges.Many(ranges.Called('virtual') | ranges.Named('virtual')) = (),
               activation: ranges.Activation = 'gelu_exact', epsilon: ranges.PartOf1 = 1e-5,
               dropout_rate: ranges.Below1 = 0.0, rngs):
    super().__init__(d_model, router=router, experts=experts, executor=executor, group_size=group_size,
                     virtual=virtual, rngs=rngs)
    init, zeros = nnx.initializers.lecun_normal(), nnx.initializers.zeros
    matrix = lambda: axes.param(init, (d_model, d_model), 'embed', 'mlp', rngs=rngs)
    vector = lambda: axes.param(zeros, (d_model,), 'mlp', rngs=rngs)
    self.norm = norm.LayerNorm(d_model, epsilon=epsilon, rngs=rngs)
    self.p, self.q, self.bp, self.bq = matrix(), matrix(), vector(), vector()
    self.adaptor = dense.Dense(d_model, d_ff=d_ff, activation=activation, use_bias=True,
                               dropout_rate=dropout_rate, rngs=rngs)
    self.activation = activation

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D], the residual stream."""
    u = self.norm(x)
    act = activations.named(self.activation)
    u = act(linear.apply(u, self.p, self.bp)) * linear.apply(u, self.q, self.bq)
    y, aux, carry = self.chosen_by(x, u, ctx, carry)
    y, _, _ = self.adaptor(y, ctx.fold('adaptor'), {})
    return y, aux, carry
