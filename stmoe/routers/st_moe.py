"""ST-MoE: stable top-n routing with router z-loss and batch priority (arXiv:2202.08906)."""

from flax import nnx
import jax

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.core.units import priority

# The choices that f_e of the balance loss counts: the first (paper, Mesh) or all (flaxformer).
COUNTED = {'first': slice(0, 1), 'any': slice(None)}


def st_moe(logits: jax.Array, mask: jax.Array, capacity: int, k: int, *, tokens: jax.Array | None = None,
           normalize_gates: bool = True, second_policy: str = 'random', threshold: float = 0.2,
           uniform: jax.Array | None = None, batch_priority: bool = False, balance_choices: str = 'first',
           choose: contract.Choose | None = None, num_virtual: int = 0) -> contract.Decision:
  """Returns (Assignment, Aux) of top-n routing (appendices D and G).

  The gates are the k largest p, over their sum as in the paper, or raw as in flaxformer. With raw gates
  the router learns how sure it is and not only the ratio of its choices. Choice i >= 2 is sent with
  probability min(1, g_i / threshold). A choice that is not sent leaves the first gate as it is. All
  first choices come before all second choices.

  Args:
    logits: f32[G,S,E], with virtual experts f32[G,S,E+Z]; mask: bool[G,S]; capacity: C.
    tokens: see `losses.token_mean`.
    second_policy, threshold: see `choices.keep`, with draws uniform f32[G,S,k-1] or None.
    batch_priority:  within a choice level tokens come by falling largest probability
      (batch-prioritised routing, arXiv:2106.05974), not by position.
    balance_choices: a key of COUNTED.
    choose:          how experts are chosen instead, see `contract.OFFERS`; all of them are sent.
    num_virtual:     Z.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.choose)(probs, k)                      # [G, S, k]
  gates = choices.values(probs, choice)
  if normalize_gates and k > 1:
    gates = choices.normalize(gates)
  sent = choices.keep('all' if choose else second_policy, gates, uniform, threshold)      # [G, S, k]
  num_experts = probs.shape[-1] - num_virtual
  edges = assignment.from_choices(choice, gates, num_experts, num_virtual)         # [G, k*S]
  edges = assignment.kill(edges, assignment.flat(sent))
  edges = assignment.kill_padding(edges, mask)
  order = jax.lax.stop_gradient(probs.max(axis=-1)) if batch_priority else None   # [G, S]
  a = assignment.cap(edges, capacity, order)
  counted = choice[..., COUNTED[balance_choices]]
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, counted, mask, tokens), z=losses.z(logits, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class STMoE(nnx.Module):
  """Top-n routing of ST-MoE (arXiv:2202.08906, sections 3 and 5, appendices D and G).

  Args:
    k:               choices per token.
    capacity_factor: (train, eval) slots per token, for all its choices; None = no drops.
    min_capacity:    least slots of an expert.
    normalize_gates: gates over their sum (paper), or raw probabilities (flaxformer).
    second_policy:   'random', 'all', 'none' or 'threshold', for choices after the first.
    threshold:       tau of 'random' (sent with probability g / tau) and of 'threshold'
      (sent iff g > tau). Evaluation draws nothing: 'random' then sends iff g > tau / 2.
    batch_priority:  batch-prioritised routing; not causal.
    balance_choices: 'first' (paper) or 'any' (flaxformer): what the balance loss counts.
    allow_causal:    accept batch priority where a token then depends on later tokens.
    num_virtual:     Z, how many of the experts are virtual; the layer says so.
  Losses: balance, z (the router z-loss, section 3.3).
  Differs: evaluation is deterministic; Mesh-TensorFlow draws there too.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               capacity_factor: ranges.Factors = (1.25, 2.0), min_capacity: ranges.Natural = 4,
               normalize_gates: ranges.Flag = True, second_policy: ranges.Choice(*choices.KEEP) = 'random',
               threshold: ranges.NonNegative = 0.2, batch_priority: ranges.Flag = False,
               balance_choices: ranges.Choice(*COUNTED) = 'first', allow_causal: ranges.Flag = False,
               num_virtual=0, rngs):
    width = num_experts + num_virtual
    choices.check_k('st_moe', k, num_experts, num_virtual)
    choices.named(choices.KEEP, second_policy, 'second_policy')
    choices.named(COUNTED, balance_choices, 'balance_choices')
    self.w = gate.weights(d_model, width, rngs=rngs)
    self.num_experts = num_experts
    self.num_virtual = num_virtual
    self.k = k
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.normalize_gates = normalize_gates
    self.second_policy = second_policy
    self.threshold = threshold
    self.batch_priority = batch_priority
    self.balance_choices = balance_choices
    self.allow_causal = allow_causal

  undecodable = property(priority.undecodable)
  logits = gate.plain

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; raises UserError for batch priority in a causal stack."""
    priority.check(self, ctx)
    capacity = assignment.slots(ctx, self.w.shape[1], self.capacity_factor, self.min_capacity)
    key = ctx.fold('second').key if ctx.train else None
    a, aux = st_moe(
        logits, ctx.mask, capacity, self.k, tokens=ctx.tokens, normalize_gates=self.normalize_gates,
        second_policy=self.second_policy, threshold=self.threshold,
        uniform=choices.draw(key, *logits.shape[:2], self.k - 1),
        batch_priority=self.batch_priority, balance_choices=self.balance_choices, choose=choose,
        num_virtual=self.num_virtual)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
