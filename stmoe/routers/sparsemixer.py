"""SparseMixer: one expert drawn for a token, and a gradient for the draw itself (arXiv:2310.00811)."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics


def contenders(rest: jax.Array, logits: jax.Array, epsilon: float) -> jax.Array:
  """Returns f32[G,S,E]: `rest` with -inf where jitter U(1 - epsilon, 1 + epsilon) could not make a winner.

  Removed: (m - s_e) / max(|s_e|, m) > 2 epsilon, with s the logits and m the largest of `rest`, which stays.
  Scaled logits have the same contenders, shifted ones have not.

  Args:
    rest: f32[G,S,E] the logits, with -inf where a token has chosen already; logits: f32[G,S,E].
  """
  s, best = jax.lax.stop_gradient((logits, rest.max(axis=-1, keepdims=True)))
  f = jnp.maximum(jnp.abs(s), best)
  removed = (best - s) / jnp.where(f == 0, 1, f) > 2 * epsilon       # 0 / 0 removes nothing
  return jnp.where(removed, -jnp.inf, rest)


def race(kept: jax.Array, exponential: jax.Array | None = None) -> jax.Array:
  """Returns i32[G,S]: argmax(kept - log q), drawn from softmax(kept [G,S,E]) where q [G,S,E] is of Exp(1)."""
  kept = jax.lax.stop_gradient(kept)
  arrival = kept if exponential is None else kept - jnp.log(exponential)
  return choices.best(jnp.where(kept > -jnp.inf, arrival, -jnp.inf))


def draws(ctx: contract.Context, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array] | None:
  """Returns (f32[G,S,...,E] of Exp(1), f32[G,S,...] of U(0,1)) in training, of this shape; else None."""
  race_key, coin_key = ctx.fold('race').key, ctx.fold('coin').key
  if not ctx.train or race_key is None or coin_key is None:
    return None
  return jax.random.exponential(race_key, shape), jax.random.uniform(coin_key, shape[:-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def with_slope(probs: jax.Array, factor: jax.Array, slope: float) -> jax.Array:
  """Returns probs * factor, arrays of one shape, whose derivative to `probs` is `slope`, not the factor."""
  return probs * factor


with_slope.defvjp(lambda probs, factor, slope: (probs * factor, None),
                  lambda slope, saved, cotangent: (slope * cotangent, None))


def sparsemixer(logits: jax.Array, mask: jax.Array, capacity: int, *, epsilon: float,
                draws: tuple[jax.Array, jax.Array] | None = None, tokens: jax.Array | None = None,
                choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to one expert, drawn from the softmax p of its contenders.

  With y = p_d f_d the router's gradient is that of the gate, L'(y) f_d dp_d, and of the draw, L(y) dp_d. By
  the mid-point rule L(y) - L(0) = L'(y/2) y the second is that of a gate, too, at half the output. So a
  coin halves the gate, and the gradient of p_d is doubled. An argmax is never halved.

  Args:
    logits:   f32[G,S,E]; mask: bool[G,S]; capacity: C; tokens: see `losses.token_mean`.
    epsilon:  see `contenders`.
    draws:    (f32[G,S,E] of Exp(1), f32[G,S] of U(0,1)); None = the argmax and its plain gradient.
    choose:   how experts are chosen instead, see `contract.OFFERS`; then nothing is halved.
  """
  kept = contenders(logits, logits, epsilon)
  probs = jax.nn.softmax(kept, axis=-1)                              # [G, S, E]
  exponential, uniform = draws or (None, None)
  choice = choose(probs, 1) if choose else race(kept, exponential)[..., None]      # [G, S, 1]
  gates = choices.values(probs, choice)
  if uniform is not None and not choose:
    whole = (choice == choices.best(logits)[..., None]) | (uniform[..., None] > 0.5)
    gates = with_slope(gates, jnp.where(whole, 1.0, 0.5), 2.0)
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  a = assignment.cap(edges, capacity)
  number = jnp.sum(kept > -jnp.inf, axis=-1, dtype=jnp.float32)      # [G, S]
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens), z=losses.z(logits, mask, tokens)),
      load=metrics.load(edges),
      metrics=dict(metrics.routing(logits, probs, edges, a, mask, tokens),
                   contenders=losses.token_mean(number, mask, tokens)))


class SparseMixer(nnx.Module):
  """Top-1 routing, sampled in training, with the mid-point rule's gradient (arXiv:2310.00811).

  The paper's layer also scales its output by a learned vector: `layers/scaled.py`.

  Args:
    epsilon:         half the relative window of `contenders`, in evaluation, too. At 0 every gate is 1.
    capacity_factor: (train, eval) slots per token; None = nothing is dropped, as in the released example.
    greedy:          training chooses as evaluation does, with the plain gradient of the gate.
  Losses: balance (of the drawn experts and the contenders' softmax), z (of all logits).
  """

  k = 1                              # choices of a token

  def __init__(self, d_model: int, *, num_experts: ranges.Count, epsilon: ranges.NonNegative = 0.1,
               capacity_factor: ranges.Factors = (None, None), greedy: ranges.Flag = False, rngs):
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (num_experts,), 'unmodeled', rngs=rngs)
    self.num_experts = num_experts
    self.epsilon = epsilon
    self.capacity_factor = tuple(capacity_factor)
    self.greedy = greedy

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(x, self.w[...]) + self.b[...]

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor)
    a, aux = sparsemixer(logits, ctx.mask, capacity, epsilon=self.epsilon, tokens=ctx.tokens, choose=choose,
                         draws=None if self.greedy else draws(ctx, logits.shape))
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
