"""No-token-left-behind: overflowing tokens try their next choice (arXiv:2101.03961, appendix B)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core import noise


def rounds(choice: jax.Array, mask: jax.Array, num_experts: int, capacity: int) -> jax.Array:
  """Returns bool[G,S,k]: in which round each token finds a slot; at most one round per token.

  In round i every token still without an expert tries its i-th choice. Such a token stands behind all
  tokens that the expert already holds and behind earlier tokens of the same round.

  Args:
    choice: i32[G,S,k] by falling probability; mask: bool[G,S].
  """
  waiting, won_by_level = mask, []
  taken = jnp.zeros((choice.shape[0], num_experts), jnp.int32)       # [G, E] slots in use
  for level in range(choice.shape[-1]):
    wanted = jnp.where(waiting, choice[..., level], num_experts)     # [G, S]
    one_hot = jax.nn.one_hot(wanted, num_experts, dtype=jnp.int32)   # [G, S, E]
    position = taken[:, None] + jnp.cumsum(one_hot, axis=1) - 1      # [G, S, E]
    won = (one_hot > 0) & (position < capacity)
    won_by_level.append(won.any(axis=-1))
    taken += won.sum(axis=1, dtype=jnp.int32)
    waiting &= ~won_by_level[-1]
  return jnp.stack(won_by_level, axis=-1)                            # [G, S, k]


def ntlb(logits: jax.Array, mask: jax.Array, capacity: int, k: int,
         tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to the best of its k choices that has room.

  The weight is the raw probability of that choice. The balance loss counts all k choices,
  over k, as `_ntlb_gating` of Mesh-TensorFlow does. It is 1 at balance.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S]; capacity: C; tokens: see `losses.token_mean`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = choices.choose(probs, k)                                  # [G, S, k]
  everything = assignment.from_choices(choice, choices.values(probs, choice), probs.shape[-1])
  everything = assignment.kill_padding(everything, mask)
  kept = rounds(choice, mask, probs.shape[-1], capacity).swapaxes(1, 2)            # [G, k, S]
  a = assignment.cap(assignment.kill(everything, kept.reshape(everything.expert.shape)), capacity)
  # What a token wanted is its first choice: first choices are the load, and what can be dropped.
  first = everything.replace(expert=everything.expert.at[:, probs.shape[1]:].set(everything.dead))
  numbers = metrics.routing(logits, probs, first, a, mask, tokens)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens) / k, z=losses.z(logits, mask, tokens)),
      load=metrics.load(first),
      metrics=dict(numbers, drop_frac=metrics.left_behind(a, mask)))


class Ntlb(nnx.Module):
  """Iterated top-1 routing (arXiv:2101.03961, appendix B, where it brought no gain).

  Args:
    num_rounds:      K, the choices a token may try.
    capacity_factor: (train, eval) slots per token; None = nothing is dropped.
    min_capacity:    least slots of an expert.
    jitter:          in training the router sees x * U(1 - jitter, 1 + jitter).
  Losses: balance, z.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, num_rounds: ranges.Count = 4,
               capacity_factor: ranges.Factors = (1.25, 2.0), min_capacity: ranges.Natural = 4,
               jitter: ranges.Below1 = 1e-2, rngs):
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.num_rounds = min(num_rounds, num_experts)
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.jitter = jitter

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    x = noise.jitter(x.astype(jnp.float32), self.jitter, ctx.fold('jitter').key if ctx.train else None)
    logits = gate.logits(x, self.w[...])        # [G, S, E]
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)
    return contract.Routed(*ntlb(logits, ctx.mask, capacity, self.num_rounds, ctx.tokens), carry)
