"""X-MoE: each token to the experts of largest cosine in a small space (arXiv:2204.09179)."""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.errors import UserError

SHORTEST = 1e-4                      # vectors below this length stay shorter than 1


def length(x: jax.Array) -> jax.Array:
  """Returns f32[...,1], the lengths of vectors x [...,R]; without a slope at 0."""
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def unit(x: jax.Array) -> jax.Array:
  """Returns vectors x [...,R] of length 1; shorter ones than SHORTEST become no longer than x / SHORTEST."""
  return x / jnp.maximum(length(x), SHORTEST)


def x_moe(logits: jax.Array, mask: jax.Array, capacity: int, k: int, *, scale: float | jax.Array = 1.0,
          double_softmax: bool = False, sequence: jax.Array | None = None, tokens: jax.Array | None = None,
          choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to its k largest cosines, weighted by softmax(scale * cosine).

  Gates of several choices are over their sum. With `double_softmax` they are the softmax over the k chosen
  PROBABILITIES, as in LibMoE's code: no gate is then more than e times another one.

  Args:
    logits:   f32[G,S,E] cosines; mask: bool[G,S]; capacity: C; tokens: see `losses.token_mean`.
    scale:    1 / temperature.
    sequence: i32[G,S] scope of the entropy loss, see `balance.sequences`; None = a whole group.
    choose:   how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(scale * logits, axis=-1)                          # [G, S, E]
  choice = (choose or choices.top)(probs, k)                         # [G, S, k]
  gates = choices.values(probs, choice)
  gates = jax.nn.softmax(gates, axis=-1) if double_softmax else choices.normalize(gates)
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  a = assignment.cap(edges, capacity)
  scores = jax.nn.softmax(probs, axis=-1) if double_softmax else probs
  shares = balance.shares(scores, choice, mask, sequence)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice[..., :1], mask, tokens),
                  z=losses.z(logits, mask, tokens), entropy=balance.negative_entropy(shares, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(scale * logits, probs, edges, a, mask, tokens))


class XMoE(nnx.Module):
  """Cosine routing in R dimensions: tokens need not gather around E vectors of their own (arXiv:2204.09179).

  Args:
    k:                 choices per token.
    width:             R; None = E / 2, but 2 at least.
    temperature:       of the softmax of cosines, at first; learned (its logarithm) unless it is fixed.
    normalize_tokens:  False: projected tokens keep their length (torchscale, with temperature 1).
    embedding_norm:    length of the experts' vectors (1.5 in LibMoE, whose temperature is fixed).
    use_bias:          of the projection (Tutel).
    double_softmax:    see `x_moe` (LibMoE).
    capacity_factor:   (train, eval) slots per token; None = nothing is dropped.
  Losses: balance (first choices), z (of the cosines), entropy (of sequences).
  Differs: experts' vectors are normalised in the graph; the codes change the parameter at every call.
  """

  normalize_gates = True

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               width: ranges.Whole(2) | None = None,
               temperature: ranges.Number('of at least 0.01', low=0.01) = 0.3,
               fixed_temperature: ranges.Flag = False, normalize_tokens: ranges.Flag = True,
               embedding_norm: ranges.Positive = 1.0, use_bias: ranges.Flag = False,
               double_softmax: ranges.Flag = False, capacity_factor: ranges.Factors = (None, None), rngs):
    self.num_experts, self.k, self.temperature = num_experts, k, temperature
    self.normalize_tokens, self.embedding_norm = normalize_tokens, embedding_norm
    self.double_softmax, self.capacity_factor = double_softmax, tuple(capacity_factor)
    width = max(2, num_experts // 2) if width is None else width
    choices.check_k('x_moe', k, num_experts)
    if double_softmax and k < 2:
      raise UserError(f'router x_moe: k={k} with double_softmax: one choice has softmax 1; nearest: 2')
    self.w = gate.weights(d_model, width, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (width,), 'unmodeled', rngs=rngs) if use_bias else None
    init = nnx.initializers.normal(width ** -0.5)                    # of length 1 or so
    self.v = axes.param(init, (num_experts, width), 'unmodeled', 'unmodeled', rngs=rngs)
    start = nnx.initializers.constant(-math.log(temperature))
    self.log_scale = None if fixed_temperature else axes.param(start, (1,), 'unmodeled', rngs=rngs)

  def embeddings(self) -> jax.Array:
    """Returns the experts' vectors f32[E,R] in their length."""
    return self.embedding_norm * unit(self.v[...])

  def projected(self, x: jax.Array) -> jax.Array:
    """Returns f32[G,S,R] for x [G,S,D]."""
    h = gate.logits(x, self.w[...]) + (0.0 if self.b is None else self.b[...])
    return unit(h) if self.normalize_tokens else h

  def scale(self) -> float | jax.Array:
    """Returns 1 / temperature, at most 100; f32[] where it is learned."""
    learned = self.log_scale
    return 1 / self.temperature if learned is None else jnp.exp(jnp.minimum(learned[0], math.log(100)))

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]: the cosines over the temperature."""
    return self.scale() * gate.logits(self.projected(x), self.embeddings().T)

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor)
    sequence, scale = balance.sequences(ctx.segments, ctx.positions), self.scale()
    a, aux = x_moe(logits / scale, ctx.mask, capacity, self.k, scale=scale, tokens=ctx.tokens, choose=choose,
                   double_softmax=self.double_softmax, sequence=sequence)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
