"""Omni-router: all sparse layers of a stack, or groups of them, route by one matrix (arXiv:2507.05724)."""

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

NONE = -1                              # the expert of a token below the first layer of a group


def omni_router(logits: jax.Array, choice: jax.Array, before: jax.Array, mask: jax.Array, capacity: int,
                tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to expert e, weighted by p_e, which is not renormalised.

  Args:
    logits:   f32[G,S,E], with noise where there is some; mask: bool[G,S] real tokens.
    choice:   i32[G,S,1] e of every token.
    before:   i32[G,S] expert of the token in the layer below that has the same matrix, or NONE.
    capacity: C.
    tokens:   see `losses.token_mean`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  edges = assignment.from_choices(choice, choices.values(probs, choice), probs.shape[-1])
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, capacity)
  same = jnp.mean(choice == before[..., None], axis=-1, dtype=jnp.float32)         # [G, S]
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens), z=losses.z(logits, mask, tokens)),
      load=metrics.load(edges),
      metrics=dict(metrics.routing(logits, probs, edges, a, mask, tokens),
                   agreement=losses.token_mean(same, mask, tokens)))


class OmniRouter(nnx.Module):
  """Top-1 by a matrix and bias that sparse layers have in common (arXiv:2507.05724).

  Every layer decides again, from its own normalised input. The gradient of the matrix is the sum over layers:
  Adam does not mind, plain SGD takes larger steps. Metric agreement: the share of tokens with the expert that
  they had in the layer below of the same group; 0 in the first layer.

  Args:
    group:           number of the group of layers that have one matrix; these have equally many experts.
    share:           'matrix'; 'decision': experts of a group's first layer hold in all others, too (the
      ablation; each layer weighs them by its own probability); 'nothing': a matrix each, as in Switch.
    noise_std:       of the Gaussian noise on logits in training.
    capacity_factor: (train, eval) slots per token; None = nothing is dropped.
    min_capacity:    least slots of an expert.
    init_std:        of the matrix; the bias begins at 0.
  Losses: balance, z.
  Differs: the matrix begins normal; that of the one public port is uniform over +-1 / sqrt(D).
  """

  k = 1

  def __init__(self, d_model: int, *, num_experts: ranges.Count, group: ranges.Natural = 0,
               share: ranges.Choice('matrix', 'decision', 'nothing') = 'matrix',
               noise_std: ranges.NonNegative = 0.1, capacity_factor: ranges.Factors = (None, None),
               min_capacity: ranges.Natural = 4, init_std: ranges.NonNegative = 0.02, rngs):
    self.w = gate.weights(d_model, num_experts, rngs=rngs, init=nnx.initializers.normal(init_std))
    self.b = axes.param(nnx.initializers.zeros, (num_experts,), 'unmodeled', rngs=rngs)
    self.ties = None if share == 'nothing' else (f'omni_router_{group}', ('w', 'b'))
    self.num_experts = num_experts
    self.group = group
    self.share = share
    self.noise_std = noise_std
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the experts i32[B,T] below the first layer of the group: none."""
    return {f'omni_router_{self.group}': jnp.full(x.shape[:2], NONE, jnp.int32)}

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    logits = gate.logits(x, self.w[...])
    logits = logits + self.b[...]
    key = ctx.fold('noise').key if ctx.train else None
    if key is None or self.noise_std == 0:
      return logits
    return logits + self.noise_std * jax.random.normal(key, logits.shape)

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    name = f'omni_router_{self.group}'
    choice, before = (choose or choices.top)(jax.nn.softmax(logits, axis=-1), 1), carry[name]
    if self.share == 'decision':
      choice = jnp.where(before[..., None] == NONE, choice, before[..., None])
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)
    a, aux = omni_router(logits, choice, before, ctx.mask, capacity, ctx.tokens)
    return contract.Routed(a, aux, carry | {name: choice[..., 0].astype(jnp.int32)})

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
