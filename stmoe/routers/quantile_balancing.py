"""Quantile balancing: top-k under a bias that is set, each step, to where every expert is wanted equally
(kexue.fm 11619; Kimi K3, report section 2.3.3; Megatron-LM)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import bias as bias_lib
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.errors import UserError


def quantile_balancing(
    logits: jax.Array, bias: jax.Array, mask: jax.Array, k: int, *, scores: str = 'softmax',
    selection: str = 'logits', normalize_gates: bool = True, tokens: jax.Array | None = None,
    choose: contract.Choose | None = None) -> tuple[assignment.Assignment, contract.Aux, jax.Array]:
  """Returns (Assignment, Aux, required f32[G,S,E]): each token to its k largest s - bias, weighed without it.

  A token chooses an expert whose bias is below what the token requires. Required is s less the token's
  (k+1)-th largest s - bias. Nothing is dropped.

  Args:
    logits: f32[G,S,E]; bias: f32[E]; mask: bool[G,S]; tokens: see `losses.token_mean`.
    scores, selection: a key of choices.SCORES, of the gates; and whether s are these or the 'logits'.
    normalize_gates: gates over their sum.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  gates = choices.SCORES[scores](logits)                                     # [G, S, E]
  s = jax.lax.stop_gradient(logits if selection == 'logits' else gates)
  choice = (choose or choices.top)(s - bias, k)                      # [G, S, k]
  weight = choices.values(gates, choice)
  if normalize_gates:
    weight = weight / (weight.sum(axis=-1, keepdims=True) + 1e-20)
  edges = assignment.kill_padding(assignment.from_choices(choice, weight, logits.shape[-1]), mask)
  a = assignment.cap(edges, edges.num_tokens)
  probs = gates / gates.sum(axis=-1, keepdims=True)
  required = s - jax.lax.top_k(s - bias, min(k + 1, s.shape[-1]))[0][..., -1:]     # s_te - alpha_t
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens) / k),
      load=metrics.load(edges),
      metrics=dict(metrics.routing(logits, probs, edges, a, mask, tokens), bias_abs_max=jnp.abs(bias).max())
  ), required


class QuantileBalancing(nnx.Module):
  """Routing balanced by biases that each step sets to a quantile, without a step size; dropless.

  Args:
    k:               choices per token.
    scores:          a key of choices.SCORES, of the gates.
    selection:       the bias is taken from the 'logits' (Megatron-LM) or from the 'scores' (Kimi K3).
    normalize_gates: gates over their sum; with k = 1 they would be constantly 1.
    ema:             share of the old bias that stays: small batches make noisy quantiles.
    bins:            parts of the histogram from which the quantile is interpolated, that of a whole step
      (torchtitan and Kimi K3: 1,000); None = the exact quantiles of microbatches, averaged (Megatron-LM).
  Losses: balance (1 at balance; without coefficient in the published recipes).
  State: bias f32[E], zero mean, moved once per optimizer step.
  Differs: where T k / E is no whole number it is rounded down; the reference asks for whole ones.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               scores: ranges.Choice(*choices.SCORES) = 'softmax',
               selection: ranges.Choice('logits', 'scores') = 'logits', normalize_gates: ranges.Flag = True,
               ema: ranges.Below1 = 0.0, bins: ranges.Count | None = 1000, rngs):
    choices.check_k('quantile_balancing', k, num_experts)
    if k == 1 and normalize_gates:
      raise UserError('router quantile_balancing: normalize_gates=True with k=1: a gate that is always 1 '
                      'teaches the router nothing; nearest: normalize_gates=False')
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.bias = axes.state(jnp.zeros(num_experts), 'unmodeled')
    self.num_experts = num_experts
    self.k = k
    self.scores = scores
    self.selection = selection
    self.normalize_gates = normalize_gates
    self.ema = ema
    self.bins = bins

  def commit(self, aux: contract.Aux) -> None:
    """Sets the bias by the statistic required: f32[E,bins] counts, or f32[E] quantiles, of one step."""
    old, required = self.bias[...], aux.statistics['required']
    exact = self.bins is None
    q = required.value if exact else bias_lib.of_histogram(required.value, old, self.k)
    new = self.ema * old + (1 - self.ema) * q
    some = (required.count if exact else required.value.sum()) > 0   # a step without tokens says nothing
    self.bias[...] = jnp.where(some, new - new.mean(), old)

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(x, self.w[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    bias, mask = self.bias[...], ctx.mask
    a, aux, required = quantile_balancing(
        logits, bias, mask, self.k, scores=self.scores, selection=self.selection,
        normalize_gates=self.normalize_gates, tokens=ctx.tokens, choose=choose)
    if self.bins is None:
      some = mask.any().astype(jnp.float32)
      q = contract.mean(jnp.where(some > 0, bias_lib.quantile(required, mask, self.k), 0), some)
    else:
      q = contract.total(bias_lib.histogram(required, mask, bias, self.bins))
    return contract.Routed(a, aux.replace(statistics=dict(required=q)), carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
