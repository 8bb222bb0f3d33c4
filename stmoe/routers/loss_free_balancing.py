"""Loss-free balancing: top-k by score and a bias that follows the load (arXiv:2408.15664)."""

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

SCORES = dict(sigmoid=jax.nn.sigmoid, softmax=jax.nn.softmax)          # G, over experts
# How a bias of 0 at the start enters the choice; the paper's multiplicative bias is 1 + ours.
SELECTION = dict(add=lambda scores, bias: scores + bias, multiply=lambda scores, bias: scores * (1 + bias))


def loss_free_balancing(logits: jax.Array, bias: jax.Array, mask: jax.Array, capacity: int, k: int, *,
                        scores: str = 'sigmoid', selection: str = 'add', normalize_gates: bool = False,
                        least_sum: float | None = None, tokens: jax.Array | None = None,
                        choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to the k experts of largest s + b, weighted by s (algorithm 1).

  The bias is in the choice only, never in the gates.

  Args:
    logits: f32[G,S,E]; bias: f32[E]; mask: bool[G,S]; capacity: C; tokens: see `losses.token_mean`.
    scores, selection: keys of SCORES and SELECTION.
    normalize_gates, least_sum: gates over their sum, of several choices; or over max(their sum, least_sum),
      where that is given, also of a single choice.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  s = SCORES[scores](logits)                                         # [G, S, E]
  choice = (choose or choices.top)(SELECTION[selection](s, bias), k)               # [G, S, k]
  gates = choices.values(s, choice)
  if normalize_gates and least_sum is not None:
    gates = gates / jnp.maximum(gates.sum(axis=-1, keepdims=True), least_sum)
  elif normalize_gates:
    gates = choices.normalize(gates)
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, s.shape[-1]), mask)
  a = assignment.cap(edges, capacity)
  probs = s / s.sum(axis=-1, keepdims=True)
  numbers = metrics.routing(logits, probs, edges, a, mask, tokens)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens) / k),
      load=metrics.load(edges),                                      # before any drop
      metrics=dict(numbers, bias_abs_max=jnp.abs(bias).max()))


class LossFreeBalancing(nnx.Module):
  """Routing balanced by biases that are moved by the load, not by a loss (arXiv:2408.15664, algorithm 1).

  Args:
    k:               choices per token.
    scores:          'sigmoid' (paper) or 'softmax'; gaps between softmax scores are of the order
      of 1 / E, so the rate should be, too.
    selection:       'add' (paper), or 'multiply' (its ablation): score times bias.
    normalize_gates: gates over their sum; the paper's are the raw scores.
    least_sum:       of normalised gates, no sum is taken as smaller. A single gate is then 1, and not the
      score (ERNIE 4.5: 1e-12, `moe_norm_min`); None = without.
    rate:            u, by which a bias moves after every optimizer step; 0.0 freezes it.
    rule:            'sign' (paper), or 'magnitude' (its ablation).
    centred:         steps of the bias have zero mean over experts (torchtitan, Moonlight).
    capacity_factor: (train, eval) slots per token; None = nothing is dropped (paper).
    min_capacity:    least slots of an expert.
  Losses: balance (1 at balance; for the paper's baseline: loss-free balancing has no coefficient for it).
  State: bias f32[E], moved by `bias_lib.update` once per optimizer step.
  Differs: with sigmoids, `balance` takes scores over their sum as probabilities, as DeepSeek-V3 does.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               scores: ranges.Choice(*SCORES) = 'sigmoid', selection: ranges.Choice(*SELECTION) = 'add',
               normalize_gates: ranges.Flag = False, least_sum: ranges.NonNegative | None = None,
               rate: ranges.NonNegative = 1e-3, rule: ranges.Choice(*bias_lib.RULES) = 'sign',
               centred: ranges.Flag = False,
               capacity_factor: ranges.Factors = (None, None), min_capacity: ranges.Natural = 4, rngs):
    choices.check_groups('loss_free_balancing', num_experts, k, 1, 1)
    for table, name, field in ((SCORES, scores, 'scores'), (SELECTION, selection, 'selection'),
                               (bias_lib.RULES, rule, 'rule')):
      choices.named(table, name, field)
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.bias = axes.state(jnp.zeros(num_experts), 'unmodeled')
    self.num_experts = num_experts
    self.k = k
    self.scores = scores
    self.selection = selection
    self.divides = normalize_gates
    # As others are told: nearly equal scores, of which a router begins, do not add up to less than least_sum.
    sure = normalize_gates and (least_sum is None or least_sum <= k / num_experts)
    self.normalize_gates = sure or (False if scores == 'softmax' and not normalize_gates else None)
    self.least_sum = least_sum
    self.rate = rate
    self.rule = rule
    self.centred = centred
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity

  def commit(self, aux: contract.Aux) -> None:
    """Moves the bias by the load of one optimizer step, aux.load f32[E]."""
    self.bias[...] = bias_lib.update(self.bias[...], aux.load, self.rate, self.centred, self.rule)

  logits = gate.plain

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)
    a, aux = loss_free_balancing(
        logits, self.bias[...], ctx.mask, capacity, self.k, scores=self.scores, selection=self.selection,
        normalize_gates=self.divides, least_sum=self.least_sum, tokens=ctx.tokens,
        choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
