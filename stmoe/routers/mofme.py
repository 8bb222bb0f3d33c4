"""MoFME: top-k by a threshold, in training with weights from the spread of passes (arXiv:2312.16610)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import metrics
from stmoe.core import noise
from stmoe.core.units import probabilities
from stmoe.errors import UserError


def kept(logits: jax.Array, k: int) -> jax.Array:
  """Returns bool[...,E]: the logits f32[...,E] that are not below the k-th largest, equal ones as well."""
  return logits >= jax.lax.stop_gradient(jax.lax.top_k(logits, k)[0][..., -1:])


def uncertain(samples: jax.Array, ridge: float = 1e-5, epsilon: float = 1e-5) -> jax.Array:
  """Returns f32[...,E], the mean over T passes of whitened deviations of norm 1; its sum is about 0.

  v_t = d_t (C + ridge I)^-1 with d_t the deviation from the mean and C the covariance of the passes. The mean
  is over v_t / (|v_t| + epsilon). Entries may be negative, and are 0 where all passes agree. No d_t has a
  part along ones, because probabilities add up to 1, or at an expert that no pass keeps. In these directions
  C counts as 1: there round-off over the ridge would be all that weights and gradients have.

  Args:
    samples: f32[T,...,E] probabilities.
  """
  apart = samples - samples[0]                                       # exactly 0 where all passes agree
  deviation = jnp.moveaxis(apart - jnp.mean(apart, axis=0), 0, -2)   # [..., T, E]
  passes, width = deviation.shape[-2:]
  covariance = jnp.einsum('...te,...tf->...ef', deviation, deviation, precision='highest') / (passes - 1)
  unmoved = jnp.all(deviation == 0, axis=-2)                         # [..., E]
  covariance += 1 + jnp.eye(width) * (unmoved[..., None] + ridge)
  whitened = jnp.linalg.solve(covariance, deviation.mT).mT           # [..., T, E], as C is symmetric
  square = jnp.sum(whitened * whitened, axis=-1, keepdims=True)
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)      # 0 has no gradient
  return jnp.mean(whitened / (norm + epsilon), axis=-2)


def mofme(logits: jax.Array, mask: jax.Array, k: int, num_virtual: int = 0, *,
          samples: jax.Array | None = None, tokens: jax.Array | None = None,
          choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to the experts of its k largest logits, with the softmax of these.

  Nothing is dropped. A token has more than k experts where logits are equal.

  Args:
    logits:      f32[G,S,E+Z]; mask: bool[G,S] real tokens; tokens: see `losses.token_mean`.
    num_virtual: Z.
    samples:     f32[T,G,S,E+Z] logits of T passes: the experts that any pass keeps, weighted by `uncertain`.
    choose:      how experts are chosen instead, see `contract.OFFERS`.
  """
  width, size = logits.shape[-1], mask.shape[1]
  if choose is not None:
    keep = jax.nn.one_hot(choose(logits, k), width, dtype=bool).any(axis=2)        # [G, S, E]
  else:
    keep = kept(logits, k) if samples is None else kept(samples, k).any(axis=0)
  probs = probabilities.softmax_of(logits, keep)
  weight = probs if samples is None else uncertain(probabilities.softmax_of(samples, kept(samples, k)))
  order = choices.top(jnp.where(keep, logits, -jnp.inf), width)      # [G, S, E], kept experts first
  chosen = jnp.where(jnp.take_along_axis(keep, order, axis=-1), order, width)      # E + Z: a dead edge
  edges = assignment.from_choices(chosen, choices.values(weight, order), width - num_virtual, num_virtual)
  edges = assignment.expecting(assignment.kill_padding(edges, mask), k * size * (1 - num_virtual / width))
  a = assignment.cap(edges, size)
  return a, contract.Aux(losses={}, load=metrics.load(edges),
                         metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class MoFME(nnx.Module):
  """Top-k of z = x W + b, in training with weights from the spread of T passes (arXiv:2312.16610).

  Evaluation takes one pass and its softmax. A router around this one sees the logits of that pass in training
  as well.

  Args:
    k:            choices of a token; 0 = all experts.
    passes:       T, 0 = the softmax in training, too.
    dropout_rate: of x in each of the T passes.
    num_virtual:  Z, given by the layer.
  Losses: none.
  Differs: the paper's formula was not at hand. The weights are those of the released code with its axes
    corrected: as released, training raises an error. Its router has no dropout, so that all its weights would
    be 0; the rate here is ours (u). Its list of passes goes on from layer to layer, here each has its own.
  """

  normalize_gates = True

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Natural = 2,
               passes: ranges.Natural = 5, dropout_rate: ranges.Below1 = 0.1, num_virtual=0, rngs):
    width = num_experts + num_virtual
    choices.check_k('mofme', k or 1, num_experts, num_virtual)
    if passes == 1 or passes and not dropout_rate:
      raise UserError(f'router mofme: passes={passes} and dropout_rate={dropout_rate} have no spread, and '
                      'all weights would be 0; nearest: passes=0, or passes=5 and dropout_rate=0.1')
    self.w = gate.weights(d_model, width, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (width,), 'unmodeled', rngs=rngs)
    self.num_experts, self.num_virtual, self.k = num_experts, num_virtual, k or width
    self.passes, self.dropout_rate = passes, dropout_rate

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E+Z] for x [G,S,D]."""
    return gate.logits(x, self.w[...]) + self.b[...]

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None, samples: jax.Array | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E+Z], of several passes `samples` f32[T,G,S,E+Z]."""
    return contract.Routed(*mofme(logits, ctx.mask, self.k, self.num_virtual, samples=samples,
                                  tokens=ctx.tokens, choose=choose), carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    key, samples = ctx.fold('passes').key if ctx.train and self.passes else None, None
    if key is not None:
      drop = lambda key: noise.dropout(x, self.dropout_rate, key)
      samples = jax.lax.map(lambda key: self.logits(drop(key), ctx), jax.random.split(key, self.passes))
    return self.decide(self.logits(x, ctx), ctx, carry, samples=samples)
