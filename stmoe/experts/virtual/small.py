"""The small expert: a network so narrow that all tokens pass it, whoever chooses it."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core.units import activations


class Small(nnx.Module):
  """Returns (act(x wi) * x wg) wo, or act(x wi) wo: the small module of Duo-LLM (arXiv:2410.10846).

  Its products are computed for every token, which is counted.

  Args:
    d_ff:       F; None = D / 4, a sixteenth of a big module of width 4 D.
    activation: name of a function, see `core/units/activations.py`.
    gated: with wg.
    init_scale: variance scale s of sqrt(s / fan_in).
  """

  def __init__(self, d_model: int, *, d_ff: ranges.Count | None = None,
               activation: ranges.Activation = 'silu', gated: ranges.Flag = True,
               init_scale: ranges.Positive = 1.0, rngs):
    width = d_ff or max(1, d_model // 4)
    init = nnx.initializers.variance_scaling(init_scale, 'fan_in', 'truncated_normal')
    inward = lambda: axes.param(init, (d_model, width), 'embed', 'mlp', rngs=rngs)
    self.wi, self.wg = inward(), inward() if gated else None
    self.wo = axes.param(init, (width, d_model), 'mlp', 'embed', rngs=rngs)
    self.activation = activation

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [G,S,D] for x [G,S,D]."""
    into = lambda w: jnp.einsum('gsd,df->gsf', x, w[...].astype(x.dtype))
    act, h = activations.named(self.activation), into(self.wi)       # [G, S, F]
    h = act(h) if self.wg is None else activations.gated(h, into(self.wg), act)
    return jnp.einsum('gsf,fd->gsd', h, self.wo[...].astype(x.dtype))
