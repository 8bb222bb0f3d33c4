"""SMoE-Dropout: a frozen random router and a growing number of active experts (arXiv:2303.01610)."""

import math

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
from stmoe.errors import UserError

STAIRS = (1, 2, 4, 8, 16)            # of the multi-step schedules

# k at step s of S, between k_min = lo and k_max = hi, before k is clipped to them. Python's `round`
# takes halves to the even integer: 8 to 16 over 400k makes k 10 at step 75,000, but 9 only after 25,000.
SCHEDULES = {
    'constant': lambda s, S, lo, hi: hi,
    'linear_increase': lambda s, S, lo, hi: round((hi - lo) * s / S) + lo,
    'linear_decrease': lambda s, S, lo, hi: round((lo - hi) * s / S) + hi,
    'cosine_increase': lambda s, S, lo, hi: round((lo - hi) * math.cos(math.pi * s / (2 * S))) + hi,
    'cosine_decrease': lambda s, S, lo, hi: round((hi - lo) * math.cos(math.pi * s / (2 * S))) + lo,
    'exp_increase': lambda s, S, lo, hi: round((lo - hi) * 0.99 ** (s // max(S // 300, 1))) + hi,
    'multi_step_increase': lambda s, S, lo, hi: STAIRS[min(5 * s // S, 4)],
    'multi_step_decrease': lambda s, S, lo, hi: STAIRS[::-1][min(5 * s // S, 4)],
}


def active(schedule: str, step: int, total_steps: int, k_min: int, k_max: int) -> int:
  """Returns k, how many experts of a token are active at `step`, an int.

  Differs: after `total_steps` k stays; the reference's cosine would turn back and its multi-step fails.
  """
  k = SCHEDULES[schedule](min(step, total_steps), total_steps, k_min, k_max)
  return min(max(k, k_min), k_max)


def changes(schedule: str, total_steps: int, k_min: int, k_max: int) -> list[tuple[int, int]]:
  """Returns [(first step, k), ...], the whole schedule; bisection finds the steps, as k never turns back."""
  k = lambda step: active(schedule, step, total_steps, k_min, k_max)
  changes_of_k = [(0, k(0))]
  while changes_of_k[-1][1] != k(total_steps):
    low, high = changes_of_k[-1][0], total_steps                     # k differs at high, not at low
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (middle, high) if k(middle) == changes_of_k[-1][1] else (low, middle)
    changes_of_k.append((high, k(high)))
  return changes_of_k


def look_up(schedule: tuple[tuple[int, int], ...], step: jax.Array) -> jax.Array:
  """Returns i32[], k at the traced `step` i32[] of a schedule made by `changes`."""
  steps, ks = (jnp.array(column, jnp.int32) for column in zip(*schedule))
  return ks[jnp.sum(step >= steps) - 1]


def smoe_dropout(logits: jax.Array, mask: jax.Array, k: int | jax.Array, k_max: int,
                 tokens: jax.Array | None = None, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): each token to its k largest logits, weighted by their softmax (section 3).

  The weights are normalised after the choice, so they sum to 1 at every k, and k = 1 has weight 1.
  Edges of rank k and more are dead. The balance loss is that of the learned baseline: E * sum_e
  (count_e / T k) (sum_t p_te / T k). It is 1/k at uniform probabilities, as its reference divides p by k too.

  Args:
    logits: f32[G,S,E].
    mask:   bool[G,S] real tokens; padding goes nowhere.
    k:      int or i32[], at most `k_max`, an int.
    tokens: divisor of the loss, see `losses.token_mean`.
    choose: how experts are chosen instead, all of which are active; see `contract.OFFERS`.
  Differs: the loss is per group, the reference has one group.
  """
  experts = logits.shape[-1]
  if choose:
    choice = choose(logits, k_max)                                   # [G, S, k_max]
    top, k = choices.values(logits, choice), choice.shape[-1]
    k_max = k
  else:
    top, choice = jax.lax.top_k(logits, k_max)
  live = jnp.arange(k_max) < k                                       # [k_max]
  gates = jax.nn.softmax(jnp.where(live, top, -jnp.inf), axis=-1)
  edges = assignment.from_choices(choice, gates, experts)            # [G, k_max*S]
  edges = assignment.kill(edges, jnp.repeat(live, logits.shape[1]))
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, logits.shape[1])
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  balance = losses.balance(probs, jnp.where(live, choice, experts), mask, tokens) / k**2
  numbers = metrics.routing(logits, probs, edges, a, mask, tokens)
  return a, contract.Aux(losses=dict(balance=balance), load=metrics.load(edges),
                         metrics=numbers | dict(active_k=jnp.asarray(k, jnp.float32)))


class SMoEDropout(nnx.Module):
  """A random router that is never trained, k growing in training, any k in evaluation (arXiv:2303.01610).

  Only the router's matrix and bias are constants: the weights depend on x, which gets their gradient.

  Args:
    k_min, k_max: ends of the schedule; k_max None = E.
    schedule:     a key of SCHEDULES.
    total_steps:  length of the schedule in optimizer steps.
    eval_k:       active experts in evaluation; None = E. Any k suits one checkpoint.
    learned:      train the router (the paper's baseline, with or without the balance loss).
  Losses: balance.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k_min: ranges.Count = 1,
               k_max: ranges.Count | None = None, schedule: ranges.Choice(*SCHEDULES) = 'linear_increase',
               total_steps: ranges.Count = 400_000, eval_k: ranges.Count | None = None,
               learned: ranges.Flag = False, rngs):
    k_max, eval_k = k_max or num_experts, eval_k or num_experts
    choices.named(SCHEDULES, schedule, 'schedule')
    for field, k, low, high in (('k_max', k_max, 1, num_experts), ('k_min', k_min, 1, k_max),
                                ('eval_k', eval_k, 1, num_experts)):
      if not low <= k <= high:
        raise UserError(f'router smoe_dropout: {field}={k} with num_experts={num_experts}; it is at least '
                        f'{low} and at most {high}')
    if total_steps < 1:
      raise UserError(f'router smoe_dropout: total_steps={total_steps}; it is at least 1')
    if learned:
      self.w: nnx.Variable = gate.weights(d_model, num_experts, rngs=rngs)
      self.b: nnx.Variable = axes.param(nnx.initializers.zeros, (num_experts,), 'unmodeled', rngs=rngs)
    else:
      self.w = axes.state(gate.INIT(rngs.params(), (d_model, num_experts)), 'embed', 'unmodeled')
      self.b = axes.state(jnp.zeros(num_experts), 'unmodeled')
    self.num_experts = num_experts
    self.k_max, self.eval_k = k_max, eval_k
    self.normalize_gates = True
    self.schedule = tuple(changes(schedule, total_steps, k_min, k_max))

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(x, self.w[...]) + self.b[...]

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    k, most = (look_up(self.schedule, ctx.step), self.k_max) if ctx.train else (self.eval_k, self.eval_k)
    a, aux = smoe_dropout(logits, ctx.mask, k, most, ctx.tokens, choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
