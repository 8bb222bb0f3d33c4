"""AdamSMoE: Adam's step in the first sparse layer, heavy-ball momentum after it (arXiv:2410.14574)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.layers import momentum
from stmoe.parts import norm

EPSILON = 1e-8                                                       # under the root


def adam(p: jax.Array, v: jax.Array, c: jax.Array, beta1: float, beta2: float,
         gamma: float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (p', v', u): Adam's moments after c, and the step u = gamma p' / sqrt(v' + 1e-8).

  p' = beta1 p + (1 - beta1) c and v' = beta2 v + (1 - beta2) c^2 without bias correction: from
  zero, u is at most gamma (1 - beta1) / sqrt(1 - beta2), 3.16 gamma at the usual betas.

  Args:
    p, v, c: f32[B,T,D] moments before the layer, and output of the experts.
  """
  p = beta1 * p + (1 - beta1) * c
  v = beta2 * v + (1 - beta2) * c ** 2
  return p, v, gamma * p / jnp.sqrt(v + EPSILON)


class AdamMomentum(nnx.Module):
  """A sparse layer that takes Adam's step (the first step of AdamSMoE, arXiv:2410.14574).

  The layer also accumulates the heavy-ball state, with which `momentum.Momentum` goes on in the layers
  above: layers=(('a', 1), ('m', n - 1)).

  Args:
    d_model: D.
    inner:   recipe of the layer that gives c; its own memory across layers passes through.
    beta1, beta2, gamma1: of `adam`.
    mu, gamma2: of `momentum.momentum`.
    post_norm: return LN(-u), the form of the released models: the input cancels, and only the
      residual of the block around the layer keeps x. Else -u, to which a block adds its residual.
    dropout_rate: dropout of c, per element, in training only.
  Differs: the released code also knows a pre-norm form, which loses the residual; here the block adds it.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), beta1: ranges.Below1 = 0.9,
               beta2: ranges.Below1 = 0.999, gamma1: ranges.Any = 1.0, mu: ranges.Any = 0.7,
               gamma2: ranges.Any = 1.0, post_norm: ranges.Flag = False, dropout_rate: ranges.Below1 = 0.0,
               rngs):
    self.inner = inner(d_model, rngs=rngs)
    self.norm = norm.LayerNorm(d_model, rngs=rngs) if post_norm else None
    self.beta1, self.beta2, self.gamma1 = beta1, beta2, gamma1
    self.mu, self.gamma2 = mu, gamma2
    self.dropout_rate = dropout_rate

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the states at the bottom of a stack, f32[B,T,D] zeros."""
    return momentum.zeros(x, 'momentum', 'adam_p', 'adam_v')

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    c, aux, carry = checked.answer(self.inner, x, ctx.fold('inner'), carry)
    c = momentum.drop(c, self.dropout_rate, ctx)
    m = momentum.momentum(carry['momentum'], c, self.mu, self.gamma2)              # [B, T, D]
    p, v, u = adam(carry['adam_p'], carry['adam_v'], c, self.beta1, self.beta2, self.gamma1)
    y = -u if self.norm is None else self.norm(-u)
    carry = carry | {'momentum': m, 'adam_p': p, 'adam_v': v}
    return y.astype(x.dtype), momentum.report(aux, m, ctx), carry
