"""Dynamic routing: as many experts as exceed a probability p, more in doubt (arXiv:2403.07652)."""

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
from stmoe.errors import UserError


def most_experts(p: float, num_experts: int) -> int:
  """Returns the most experts that a token can need: floor(p E) + 1, which a flat router has, at most E.

  The j largest of E probabilities are at least j / E together. Where p E is as good as whole, one more.
  """
  return min(int(p * num_experts + 1e-3) + 1, num_experts)


def top_p_routing(logits: jax.Array, mask: jax.Array, p: float, most: int, *, expected: float | None = None,
                  tokens: jax.Array | None = None, choose: contract.Choose | None = None
                  ) -> contract.Decision:
  """Returns (Assignment, Aux): token s to its most probable experts up to the first whose sum exceeds p.

  An expert is active if those before it, by falling probability, add up to p at most. Weights are the
  probabilities, not over their sum. Where no sum exceeds p, all experts are active. Nothing is dropped.

  Losses: `balance`, E sum_e f_e Q_e with f the share of tokens for which e is active; `entropy`, the mean of
  -sum_e P_e log P_e over tokens, without which probabilities go flat and many experts are active.

  Args:
    logits:   f32[G,S,E]; mask: bool[G,S] real tokens; tokens: see `losses.token_mean`.
    most:     experts that a token has at most.
    expected: experts of a token on average, by which cost is counted; None = `most`.
    choose:   how experts are chosen instead, all of which are active; see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.top)(probs, most)                      # [G, S, most]
  weight = choices.values(probs, choice)
  before = jnp.cumsum(weight, axis=-1)[..., :-1]                     # of the experts of lower rank
  active = jnp.pad(before <= p, ((0, 0), (0, 0), (1, 0)), constant_values=True)
  if choose:
    active = jnp.ones_like(active)
  num_experts, size = probs.shape[-1], mask.shape[1]
  choice = jnp.where(active, choice, num_experts)                    # E: a dead edge
  edges = assignment.kill_padding(assignment.from_choices(choice, weight, num_experts), mask)
  if expected is not None:
    edges = assignment.expecting(edges, expected * size)
  a = assignment.cap(edges, size)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens),
                  entropy=metrics.entropy(probs, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class TopPRouting(nnx.Module):
  """Top-p routing: a token has the fewest experts whose probabilities exceed p (arXiv:2403.07652).

  Args:
    p:           above 0; 1 = all experts.
    max_experts: a cap on the experts of a token; None = none but `most_experts`, which p itself is.
    expected:    experts of a token on average, by which cost is counted: the metric active_experts of a
      training. None = the most that it can have.
  Losses: balance, entropy.
  """

  normalize_gates = False

  def __init__(self, d_model: int, *, num_experts: ranges.Count, p: ranges.PartOf1 = 0.4,
               max_experts: ranges.Count | None = None, expected: ranges.AtLeast1 | None = None, rngs):
    most = min(most_experts(p, num_experts), max_experts or num_experts)
    if expected is not None and expected > most:
      raise UserError(f'router top_p_routing: expected={expected} experts of a token, but p={p}, num_experts='
                      f'{num_experts} and max_experts={max_experts} allow {most}; nearest: {most}')
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.p = p
    self.k = most
    self.expected = expected

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(x, self.w[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    a, aux = top_p_routing(logits, ctx.mask, self.p, self.k, expected=self.expected, tokens=ctx.tokens,
                           choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
