"""MomentumSMoE: heavy-ball momentum from one sparse layer to the next (arXiv:2410.14574).

A residual stack of sparse layers is read as gradient descent on the experts' potentials, with a
step in every layer. This step is replaced by an accelerated step. The state lives across depth, for
each token by itself: it starts at zero in every forward pass and is never carried over time.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core import losses
from stmoe.core import noise
from stmoe.parts import norm


def momentum(m: jax.Array, c: jax.Array, mu: float, gamma: float) -> jax.Array:
  """Returns the state m' = mu m + gamma c of one sparse layer; its output is x - m'.

  Mind the minus sign: the output c of the experts is a gradient. With mu = 0 and gamma = 1 this
  is an ordinary sparse layer with negated experts.

  Args:
    m, c: f32[B,T,D] state before the layer, and output of the experts.
  Differs: the paper writes x + gamma p with p = -c + mu p, the same for a constant gamma.
  """
  return mu * m + gamma * c


class Momentum(nnx.Module):
  """A sparse layer whose step carries heavy-ball momentum (MomentumSMoE, arXiv:2410.14574).

  Args:
    d_model: D.
    inner:   recipe of the layer that gives c; its own memory across layers passes through.
    mu, gamma: of `momentum`; 0.7 and 1 in the released language models.
    post_norm: return LN(x - m), the form of the released models. Their post-norm blocks then add
      and normalise once more: LN(x + LN(x - m)). Else -m, to which a block adds its residual.
    dropout_rate: dropout of c, per element, in training only.
  """

  def __init__(self, d_model: int, *, inner: ranges.Named('layer'), mu: ranges.Any = 0.7,
               gamma: ranges.Any = 1.0, post_norm: ranges.Flag = False, dropout_rate: ranges.Below1 = 0.0,
               rngs):
    self.inner = inner(d_model, rngs=rngs)
    self.norm = norm.LayerNorm(d_model, rngs=rngs) if post_norm else None
    self.mu = mu
    self.gamma = gamma
    self.dropout_rate = dropout_rate

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the state at the bottom of a stack, f32[B,T,D] zeros."""
    return zeros(x, 'momentum')

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Answer:
    """Returns (y [B,T,D], aux, carry) for x [B,T,D]."""
    c, aux, carry = checked.answer(self.inner, x, ctx.fold('inner'), carry)
    c = drop(c, self.dropout_rate, ctx)
    m = momentum(carry['momentum'], c, self.mu, self.gamma)          # [B, T, D]
    y = -m if self.norm is None else self.norm(x - m)
    return y.astype(x.dtype), report(aux, m, ctx), carry | {'momentum': m}


def zeros(x: jax.Array, *names: str) -> dict[str, jax.Array]:
  """Returns zeros f32[B,T,D], like x, for each of `names`.

  float32 whatever the activations are: (1 - beta2) c^2 of Adam would be lost in bfloat16.
  """
  return {name: jnp.zeros(x.shape, jnp.float32) for name in names}


def drop(c: jax.Array, rate: float, ctx: contract.Context) -> jax.Array:
  """Returns c [B,T,D] in float32, with dropout in training."""
  return noise.dropout(c.astype(jnp.float32), rate, ctx.fold('mixture').key if ctx.train else None)


def report(aux: contract.Aux, m: jax.Array, ctx: contract.Context) -> contract.Aux:
  """Returns `aux` with the metric momentum_norm: root mean square of m [B,T,D], mean over real tokens."""
  if aux is None:
    return None
  rms = jnp.sqrt(jnp.mean(jnp.square(jax.lax.stop_gradient(m)), axis=-1))          # [B, T]
  return aux.replace(metrics=aux.metrics | {'momentum_norm': losses.token_mean(rms, ctx.mask, ctx.tokens)})
