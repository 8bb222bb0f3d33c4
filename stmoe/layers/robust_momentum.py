"""Robust MomentumSMoE: the robust momentum method along depth (arXiv:2410.14574; Cyrus et al., 2018)."""

import math

from flax import nnx
import jax

from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.layers import momentum
from stmoe.parts import norm


def coefficients(smoothness: float, convexity: float, rho: float) -> tuple[float, float, float]:
  """Returns (alpha, beta, eta) of the robust momentum method (Cyrus et al., 2018).

  With kappa = L / c: alpha = kappa (1-rho)^2 (1+rho) / L, beta = kappa rho^3 / (kappa-1) and
  eta = rho^3 / ((kappa-1) (1-rho)^2 (1+rho)). On an L-smooth, c-strongly convex function the
  error falls by rho a step. rho = 1 - 1/sqrt(kappa) is fastest and least robust to errors of the
  gradient; rho = 1 - 1/kappa has gradient descent's rate and robustness.

  Args:
    smoothness, convexity: L and c, 0 < c < L.
    rho: in [1 - 1/sqrt(kappa), 1 - 1/kappa].
  """
  if not 0 < convexity < smoothness:
    raise UserError(f'robust momentum: convexity={convexity} is not between 0 and smoothness={smoothness}; '
                    f'for example convexity={smoothness / 10 if smoothness > 0 else 0.1}')
  kappa = smoothness / convexity
  low, high = 1 - 1 / math.sqrt(kappa), 1 - 1 / kappa
  if not low <= rho <= high:
    raise UserError(f'robust momentum: rho={rho} with smoothness / convexity = {kappa:g}; rho is in '
                    f'[1 - 1/sqrt({kappa:g}), 1 - 1/{kappa:g}] = [{low:.4f}, {high:.4f}]; '
                    f'nearest: {low if rho < low else high:.4f}')
  step = (1 - rho) ** 2 * (1 + rho)
  return kappa * step / smoothness, kappa * rho ** 3 / (kappa - 1), rho ** 3 / ((kappa - 1) * step)


def ahead(x: jax.Array, d: jax.Array, eta: float) -> jax.Array:
  """Returns y = x + eta d [B,T,D], where the gradient is taken; d is the last step, x_t - x_{t-1}."""
  return x + eta * d


def robust(d: jax.Array, c: jax.Array, alpha: float, beta: float) -> jax.Array:
  """Returns the next step d' = beta d - alpha c [B,T,D] after the gradient c at `ahead`; x' = x + d'."""
  return beta * d - alpha * c


class RobustMomentum(nnx.Module):
  """A sparse layer that takes a step of the robust momentum method (arXiv:2410.14574, all unverified).

  The published code has no such layer, and the paper's values of L, c and rho are not known here.
  So the form, the defaults and all results with the layer are this project's.

  Args:
    d_model: D.
    inner:   recipe of the layer that gives c; its own memory across layers passes through.
    smoothness, convexity, rho: L, c and rho of `coefficients`.
    normalize: give the experts y / rms(y), as pre-norm blocks do. The block's own norm is then
      switched off by `norm=False`, since the step is a step of the residual stream. False where x is
      already normalised, as in post-norm blocks: the experts see y.
    post_norm: return LN(x + d), for post-norm blocks. Else d, to which a block adds its residual.
    dropout_rate: dropout of c, per element, in training only.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), smoothness: ranges.Positive = 1.0,
               convexity: ranges.Positive = 0.1, rho: ranges.Share = 0.8, normalize: ranges.Flag = True,
               post_norm: ranges.Flag = False, dropout_rate: ranges.Below1 = 0.0, rngs):
    self.alpha, self.beta, self.eta = coefficients(smoothness, convexity, rho)
    self.input_norm = norm.RMSNorm(d_model, rngs=rngs) if normalize else None
    self.inner = inner(d_model, rngs=rngs)
    self.norm = norm.LayerNorm(d_model, rngs=rngs) if post_norm else None
    self.dropout_rate = dropout_rate

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the step d at the bottom of a stack, f32[B,T,D] zeros."""
    return momentum.zeros(x, 'robust_momentum')

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    y = ahead(x, carry['robust_momentum'], self.eta)                 # [B, T, D]
    y = y if self.input_norm is None else self.input_norm(y)
    c, aux, carry = checked.answer(self.inner, y.astype(x.dtype), ctx.fold('inner'), carry)
    c = momentum.drop(c, self.dropout_rate, ctx)
    d = robust(carry['robust_momentum'], c, self.alpha, self.beta)
    y = d if self.norm is None else self.norm(x + d)
    return y.astype(x.dtype), momentum.report(aux, d, ctx), carry | {'robust_momentum': d}
