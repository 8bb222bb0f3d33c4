"""DynMoLE: as many experts as a probability says, all where the router is unsure (arXiv:2504.00661)."""

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


def entropy(probs: jax.Array, q: float = 1.1, kind: str = 'tsallis', epsilon: float = 1e-5) -> jax.Array:
  """Returns f32[...], the entropy of probs f32[...,E] over that of equal probabilities: 0 to about 1.

  Tsallis: (1 - sum_e p_e^q) / (q - 1); at q = 1 the limit, Shannon's. Renyi: log(sum_e p_e^q) / (1 - q). With
  p + epsilon in place of p, equal probabilities give slightly more than 1.

  >>> [round(float(entropy(jnp.full(4, 0.25), q, kind)), 3) for q, kind in ((2, 'tsallis'), (2, 'renyi'))]
  [1.0, 1.0]
  >>> round(float(entropy(jnp.array([1.0, 0.0]), 1.0)), 2)
  0.0
  """
  p, number = probs + epsilon, probs.shape[-1]
  if q == 1:
    return -jnp.sum(p * jnp.log(p), axis=-1) / jnp.log(number)
  power = jnp.sum(p ** q, axis=-1)
  if kind == 'renyi':
    return jnp.log(power + 1e-10) / (1 - q) / jnp.log(number)
  return (1 - power) / (1 - number ** (1 - q))                       # (q - 1) of both cancels


def dynmole(logits: jax.Array, mask: jax.Array, *, p: float, keep: int, threshold: float, q: float = 1.1,
            kind: str = 'tsallis', epsilon: float = 1e-5, expected: float | None = None,
            tokens: jax.Array | None = None, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): a token to its most probable experts, or to all where its entropy is high.

  By falling probability, experts are active while their sum is at most p, and the first `keep` always.
  Weights are the probabilities, not over their sum. Nothing is dropped.

  Losses: `entropy`, the mean of `entropy` over tokens; `balance`, E sum_e f_e P_e with f the mean of the
  weights, whose gradient counts, too.

  Args:
    logits:    f32[G,S,E]; mask: bool[G,S] real tokens; tokens: see `losses.token_mean`.
    threshold: of the entropy; from 1 on it is off.
    q, kind, epsilon: see `entropy`.
    expected:  experts of a token on average, by which cost is counted; None = E.
    choose:    how experts are chosen instead, all of which are active; see `contract.OFFERS`.
  """
  num_experts = logits.shape[-1]
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  unsure = entropy(probs, q, kind, epsilon)                          # [G, S]
  choice = (choose or choices.top)(probs, num_experts)               # [G, S, E]
  weight = choices.values(probs, choice)
  active = (jnp.cumsum(weight, axis=-1) <= p) | (jnp.arange(choice.shape[-1]) < keep)
  if choose:
    active = jnp.ones_like(active)
  elif threshold < 1:
    active |= (unsure > threshold)[..., None]
  kept = jnp.where(active, choice, num_experts)                      # E: a dead edge
  edges = assignment.kill_padding(assignment.from_choices(kept, weight, num_experts), mask)
  if expected is not None:
    edges = assignment.expecting(edges, expected * mask.shape[1])
  a = assignment.cap(edges, mask.shape[1])
  weights = jnp.sum(jax.nn.one_hot(kept, num_experts) * weight[..., None], axis=-2)          # [G, S, E]
  return a, contract.Aux(
      losses=dict(balance=losses.token_mean(balance_of_groups(probs, weights, mask), mask, tokens),
                  entropy=losses.token_mean(unsure, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


def balance_of_groups(probs: jax.Array, weights: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns f32[G], E sum_e f_e P_e: means of weights and probs f32[G,S,E] over a group's real tokens.

  >>> probs = jnp.array([[[0.75, 0.25]]])
  >>> balance_of_groups(probs, probs, jnp.ones((1, 1), bool)).tolist()
  [1.25]
  """
  count = mask.sum(axis=1, keepdims=True) + 1e-8
  mean = lambda x: jnp.sum(jnp.where(mask[..., None], x, 0), axis=1) / count       # [G, E]
  return probs.shape[-1] * jnp.sum(mean(weights) * mean(probs), axis=-1)


class DynMoLE(nnx.Module):
  """Hybrid routing by the entropy of the router (arXiv:2504.00661); see `layers/dynmole.py`.

  Args:
    p:         experts are active while the sum of their probabilities is at most p.
    keep:      experts that are always active, the most probable.
    threshold: of the entropy, relative to that of equal probabilities, above which all experts are active;
      1.0 = never.
    q, kind:   of the entropy: Tsallis' or Renyi's of index q. At q = 1 both are Shannon's.
    expected:  experts of a token on average, by which cost is counted: the metric active_experts of a
      training. None = all.
  Losses: balance, entropy.
  Differs: the released code takes the entropy loss over padding, too, and both losses over all layers of a
    batch. Here they are of the real tokens of a routing group of one layer.
  """

  normalize_gates = False
  epsilon = 1e-5                         # of the entropy

  def __init__(self, d_model: int, *, num_experts: ranges.Count = 6, p: ranges.PartOf1 = 0.75,
               keep: ranges.Count = 2, threshold: ranges.PartOf1 = 0.9, q: ranges.Positive = 1.1,
               kind: ranges.Choice('tsallis', 'renyi') = 'tsallis',
               expected: ranges.AtLeast1 | None = None, rngs):
    if max(keep, expected or 1) > num_experts:
      raise UserError(f'router dynmole: keep={keep}, expected={expected} of num_experts={num_experts}; '
                      f'nearest: {num_experts}')
    # Kaiming's uniform draw with a = sqrt(5): U(-1 / sqrt(D), 1 / sqrt(D)).
    uniform = nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    self.w = gate.weights(d_model, num_experts, rngs=rngs, init=uniform)
    self.num_experts = self.k = num_experts
    self.p, self.keep = p, keep
    self.threshold, self.q, self.kind = threshold, q, kind
    self.expected = expected

  logits = gate.plain

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    return contract.Routed(*dynmole(
        logits, ctx.mask, p=self.p, keep=self.keep, threshold=self.threshold, q=self.q, kind=self.kind,
        epsilon=self.epsilon, expected=self.expected, tokens=ctx.tokens, choose=choose), carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
