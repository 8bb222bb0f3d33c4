"""GShard: group-level top-2 gating with a random second expert (arXiv:2006.16668)."""

import math

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

# How later experts are picked from the rest, and which of them are sent: (pick, policy of choices.KEEP).
# 'sampling' draws later experts from the softmax without the first, as praxis has it.
POLICIES = {'all': (choices.best, 'all'), 'random': (choices.best, 'random'),
            'threshold': (choices.best, 'threshold'), 'none': (choices.best, 'none'),
            'sampling': (choices.sample, 'all')}


def cap_logits(logits: jax.Array, cap: float) -> jax.Array:
  """Returns cap * tanh(logits / cap) of f32[G,S,E], or `logits` when cap is 0 (praxis)."""
  return cap * jnp.tanh(logits / cap) if cap > 0 else logits


def renormalize(a: assignment.Assignment, k: int) -> assignment.Assignment:
  """Returns `a` with the weights of every token's live edges over their sum; 0 where no edge lives.

  Args:
    a: Assignment of token choice with k choices, N = k*S edges; [G,N].
  """
  live = assignment.live(a).reshape(a.token.shape[0], k, -1)         # [G, k, S]
  weight = jnp.where(live, a.weight.reshape(live.shape), 0)
  total = weight.sum(axis=1, keepdims=True)                          # [G, 1, S]
  weight = weight / jnp.where(total > 0, total, 1)                   # safe before the division
  return a.replace(weight=weight.reshape(a.weight.shape))


def gshard(logits: jax.Array, mask: jax.Array, capacity: int, k: int = 2, *, tokens: jax.Array | None = None,
           second_policy: str = 'random', threshold: float = 0.5, uniform: jax.Array | None = None,
           normalize_after_drop: bool = False, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux) of algorithm 1 (section 2.2), for any k.

  The gates are divided by their sum before anything is dropped: losing the second expert then
  leaves the first gate as it is. Divided after (praxis), the first gate becomes 1.
  All first choices come before all second choices.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S]; capacity: C; tokens: see `losses.token_mean`.
    second_policy: a key of POLICIES, with draws uniform f32[G,S,k-1] or None. The policy sees the
      normalised gates, with `normalize_after_drop` the raw gates.
    threshold:     tau of 'random' and 'threshold', see `choices.keep`.
    choose:        how experts are chosen instead, see `contract.OFFERS`; all of them are sent.
  Differs: the paper's counter also advances for a second choice that was not sent. All
  published code counts only choices that were sent, and so does this.
  """
  pick, policy = POLICIES['all' if choose else second_policy]
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = choose(probs, k) if choose else choices.choose(probs, k, pick, uniform)   # [G, S, k]
  gates = choices.values(probs, choice)
  if not normalize_after_drop and k > 1:
    gates = choices.normalize(gates)
  sent = choices.keep(policy, gates, uniform, threshold)             # [G, S, k]
  edges = assignment.from_choices(choice, gates, probs.shape[-1])    # [G, k*S]
  edges = assignment.kill(edges, assignment.flat(sent))
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, capacity)
  if normalize_after_drop and k > 1:
    a = renormalize(a, choice.shape[-1])
  numbers = metrics.routing(logits, probs, edges, a, mask, tokens)
  over = {f'over_capacity_{i + 1}': lost for i, lost in enumerate(metrics.over_capacity(edges, a))}
  numbers |= {name: lost.value for name, lost in over.items()}
  terms = dict(balance=losses.balance(probs, choice[..., :1], mask, tokens), z=losses.z(logits, mask, tokens))
  if choice.shape[-1] > 1:
    terms['second_place'] = losses.second_place(probs, choice, mask, tokens)
  return a, contract.Aux(losses=terms, load=metrics.load(edges), metrics=numbers, statistics=over)


class GShard(nnx.Module):
  """Top-2 gating (arXiv:2006.16668, section 2.2 and algorithm 1); top-k for other k.

  Args:
    k:               choices per token. With k = 1 the gate is p itself.
    capacity_factor: (train, eval) slots per token, for all its choices (paper: 2); None = no drops.
    min_capacity:    least slots of an expert.
    expert_slots:    (train, eval) slots of an expert, whatever the number of tokens; None: see `token_share`.
    token_share:     (train, eval) slots of an expert as a share of the group's tokens, rounded up; None:
      `capacity_factor` and `min_capacity` say it (NLLB, arXiv:2207.04672: 64 slots, and all tokens).
    second_policy:   'random' (paper), 'all', 'threshold', 'sampling' or 'none'.
    threshold:       tau: 'random' sends with probability g_2 / tau (paper: 2 g_2, so 0.5;
      Mesh 0.2), 'threshold' iff g_2 > tau. Evaluation draws nothing: 'random' sends iff
      g_2 > tau / 2, 'sampling' takes the most probable.
    normalize_after_drop: divide the gates by the sum of the gates that survive (praxis).
    logit_cap:       logits become cap * tanh(logits / cap); 0 = off.
  Losses: balance (first choices), z, and for k > 1 second_place (Mesh: half of balance's coefficient).
  Differs: slots are rounded to the nearest number. Mesh rounds down, praxis then up to a multiple of 4.
  """

  normalize_gates = True

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               capacity_factor: ranges.Factors = (2.0, 2.0), min_capacity: ranges.Natural = 4,
               expert_slots: ranges.Pair(ranges.Count | None) = (None, None),
               token_share: ranges.Pair(ranges.PartOf1 | None) = (None, None),
               second_policy: ranges.Choice(*POLICIES) = 'random', threshold: ranges.NonNegative = 0.5,
               normalize_after_drop: ranges.Flag = False, logit_cap: ranges.NonNegative = 0.0, rngs):
    choices.check_k('gshard', k, num_experts)
    choices.named(POLICIES, second_policy, 'second_policy')
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.expert_slots = tuple(expert_slots)
    self.token_share = tuple(token_share)
    self.second_policy = second_policy
    self.threshold = threshold
    self.normalize_after_drop = normalize_after_drop
    self.logit_cap = logit_cap

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return cap_logits(gate.logits(x, self.w[...]), self.logit_cap)

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    capacity = self._capacity(ctx)
    key = ctx.fold('second').key if ctx.train else None
    a, aux = gshard(logits, ctx.mask, capacity, self.k, tokens=ctx.tokens,
                    second_policy=self.second_policy, threshold=self.threshold,
                    uniform=choices.draw(key, *logits.shape[:2], self.k - 1),
                    normalize_after_drop=self.normalize_after_drop, choose=choose)
    return contract.Routed(a, aux, carry)

  def _capacity(self, ctx):
    """C of the groups of `ctx`."""
    phase, size = 0 if ctx.train else 1, ctx.mask.shape[1]
    if self.expert_slots[phase] is not None:
      return min(size, self.expert_slots[phase])
    if self.token_share[phase] is not None:
      return math.ceil(self.token_share[phase] * size)           # of the float product, as transformers
    return assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
