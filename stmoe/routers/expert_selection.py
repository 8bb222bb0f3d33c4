"""Experts select tokens by a softmax over tokens (Mesh-TensorFlow, a relative of expert choice)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.errors import UserError


def expert_selection(logits: jax.Array, mask: jax.Array, capacity: int,
                     tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux) of `_expert_selection_gating` in Mesh-TensorFlow.

  Every expert has a softmax over the real tokens of the group and takes its C largest. A
  token averages over the experts that took it: weight = p / max(1, number of experts).

  Args:
    logits: f32[G,S,E]; mask: bool[G,S]; capacity: C <= S; tokens: see `losses.token_mean`.
  Losses: balance is `losses.popularity`.
  """
  mask = mask.astype(bool)
  probs = jax.nn.softmax(jnp.where(mask[..., None], logits, -1e9), axis=1)         # [G, S, E] over S
  ranking = jax.lax.stop_gradient(jnp.where(mask[..., None], probs, -1))
  edges = assignment.from_experts_choice(ranking, capacity)          # [G, E*C]
  group = jnp.arange(probs.shape[0])[:, None]
  edges = assignment.kill_padding(edges.replace(weight=probs[group, edges.token, edges.expert]), mask)
  a = assignment.cap(edges, capacity)
  takers = jnp.maximum(metrics.experts_per_token(a), 1)              # [G, S]
  a = a.replace(weight=a.weight / jnp.take_along_axis(takers, a.token, axis=1))
  return a, contract.Aux(
      losses=dict(balance=losses.popularity(probs, mask, tokens), z=losses.z(logits, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, jax.nn.softmax(logits, axis=-1), edges, a, mask, tokens))


class ExpertSelection(nnx.Module):
  """Experts select tokens (Mesh-TensorFlow). Whether a token is taken depends on later tokens.

  Args:
    capacity_factor: (train, eval) average experts per token; None = every expert takes all.
    min_capacity:    least slots of an expert, never more than the tokens of the group.
    allow_causal:    accept a stack in which a token must not depend on later tokens.
  Losses: balance (popularity of tokens), z.
  """

  undecodable = "experts select among the tokens of a group, later ones too; nearest: router name='st_moe'"

  def __init__(self, d_model: int, *, num_experts: ranges.Count,
               capacity_factor: ranges.Factors = (1.25, 2.0), min_capacity: ranges.Natural = 4,
               allow_causal: ranges.Flag = False, rngs):
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError in a causal stack."""
    if ctx.causal and not self.allow_causal:
      raise UserError('router expert_selection lets later tokens decide in a causal stack; nearest: router '
                      "name='st_moe' (or allow_causal=True)")
    logits = gate.logits(x, self.w[...])
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)
    return contract.Routed(*expert_selection(logits, ctx.mask, capacity, ctx.tokens), carry)
