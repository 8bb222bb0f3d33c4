"""TC-MoE: every expert with factor +1, -1, or not at all (Yan et al., ICLR 2025)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.errors import UserError


def probabilities(logits: jax.Array, num_experts: int, negative_bias: float, null_bias: float) -> jax.Array:
  """Returns f32[G,S,2E+Z], the softmax of logits [G,S,2E+Z] with the fixed biases of the three kinds.

  Entries: E experts with factor +1, the same E with factor -1, then Z nulls.
  """
  kind = jnp.arange(logits.shape[-1]) // num_experts                 # 0, 1, and 2 or more for nulls
  return jax.nn.softmax(logits + jnp.array([0.0, negative_bias, null_bias])[jnp.minimum(kind, 2)], axis=-1)


def weights(probs: jax.Array, choice: jax.Array, num_experts: int) -> jax.Array:
  """Returns f32[G,S,k]: p of the choices i32[G,S,k] over (p of those that are no nulls + p of all nulls)."""
  p = choices.values(probs, choice)                                  # [G, S, k]
  named = jnp.sum(jnp.where(choice < 2 * num_experts, p, 0), axis=-1, keepdims=True)
  return p / (named + probs[..., 2 * num_experts:].sum(axis=-1, keepdims=True))


def by_expert(probs: jax.Array, num_experts: int) -> jax.Array:
  """Returns f32[G,S,E], the probability of each expert, with either sign, among all that are no nulls."""
  named = probs[..., :2 * num_experts].reshape(*probs.shape[:-1], 2, num_experts)
  total = named.sum(axis=(-2, -1))[..., None]
  return named.sum(axis=-2) / jnp.where(total > 0, total, 1)


def tc_moe(logits: jax.Array, mask: jax.Array, k: int, num_experts: int, *, negative_bias: float = -1.0,
           null_bias: float = -10.0, rows: float | None = None, sequence: jax.Array | None = None,
           tokens: jax.Array | None = None, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): y = sum of sign * weight * f_e(x) over the k most probable of 2E + Z entries.

  A null is a dead edge: it takes no slot and computes nothing. Two choices of one expert, + and -, are one
  edge with the difference of their weights. Nothing is dropped.

  Args:
    logits: f32[G,S,2E+Z], see `probabilities`; mask: bool[G,S]; tokens: see `losses.token_mean`.
    rows:   experts of a token on average, by which cost is counted; None = k.
    sequence: i32[G,S] scope of the balance loss, see `balance.sequences`; None = a whole group.
    choose:   which of the 2E + Z entries are chosen instead, as in `contract.OFFERS`.
  """
  probs = probabilities(logits, num_experts, negative_bias, null_bias)             # [G, S, 2E+Z]
  choice = (choose or choices.top)(probs, k)                         # [G, S, k]
  null, minus = choice >= 2 * num_experts, (choice >= num_experts) & (choice < 2 * num_experts)
  expert = jnp.where(null, num_experts, choice % num_experts)
  signed = weights(probs, choice, num_experts) * jnp.where(minus, -1, 1)
  edges = assignment.kill_padding(assignment.from_choices(expert, signed, num_experts), mask)
  edges = assignment.merge(edges)
  edges = edges if rows is None else assignment.expecting(edges, rows * mask.shape[1])
  a = assignment.cap(edges, edges.num_tokens)
  shares = balance.shares(by_expert(probs, num_experts), expert, mask, sequence)
  named = shares.f.sum(axis=-1, keepdims=True)                       # choices that are no nulls
  shares = shares._replace(f=shares.f / jnp.where(named > 0, named, 1))
  mean = lambda values: losses.token_mean(values, mask, tokens)
  share = lambda flags: mean(flags.mean(axis=-1, dtype=jnp.float32))
  return a, contract.Aux(
      losses=dict(balance=balance.expert_loss(shares, tokens), z=losses.z(logits, mask, tokens),
                  reward=-mean(probs[..., 2 * num_experts:].sum(axis=-1))),
      load=metrics.load(edges),
      metrics=dict(metrics.routing(logits, probs, edges, a, mask, tokens), null_share=share(null),
                   negative_share=share(minus)))


class TcMoe(nnx.Module):
  """Ternary expert choice: k of 2E + Z entries (Yan et al., ICLR 2025); dropless.

  Args:
    k:             choices per token.
    num_null:      Z, nulls among which a token may choose; None = k.
    negative_bias: fixed, of the logits of experts with factor -1.
    null_bias:     fixed, of those of nulls: they are out of reach until the router has learned about 10.
    expected:      experts of a token on average, by which cost is counted (the metric active_experts says
      what it was); None = k, no nulls.
  Losses: balance (of sequences, 1 / E at balance), reward (minus the probability of nulls), z (no biases).
  Differs: released code takes -1 for +1, or loses one of two choices of an expert; here the formula is
    computed. LibMoE's balance loss counts the whole batch for every sequence.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               num_null: ranges.Natural | None = None, negative_bias: ranges.Any = -1.0,
               null_bias: ranges.Any = -10.0, expected: ranges.Positive | None = None, rngs):
    choices.check_k('tc_moe', k, num_experts)
    if expected is not None and expected > k:
      raise UserError(f'router tc_moe: expected={expected} experts of a token, but k={k}; nearest: {k}')
    self.w = gate.weights(d_model, 2 * num_experts + (k if num_null is None else num_null), rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.negative_bias = negative_bias
    self.null_bias = null_bias
    self.expected = expected

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    a, aux = tc_moe(gate.logits(x, self.w[...]), ctx.mask, self.k, self.num_experts, tokens=ctx.tokens,
                    negative_bias=self.negative_bias, null_bias=self.null_bias, rows=self.expected,
                    sequence=balance.sequences(ctx.segments, ctx.positions))
    return contract.Routed(a, aux, carry)
