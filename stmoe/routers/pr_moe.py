"""PR-MoE's gates: top-1, top-2 and top-k of DeepSpeed, with random token selection (arXiv:2201.05596)."""

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
from stmoe.core import noise
from stmoe.errors import UserError

# Which tokens an over-full expert keeps -> whether that is causal: a random part of them (random token
# selection), first choices first, the most probable ones, the first ones whichever choice it is of theirs.
POLICIES = {'random': False, 'choice': True, 'probs': False, 'position': True}
FLOOR = 1.2e-7                                                       # least sum that gates are divided by


def pr_moe(logits: jax.Array, mask: jax.Array, capacity: int, k: int, *, keep: str,
           uniform: jax.Array | None = None, gumbel: jax.Array | None = None,
           tokens: jax.Array | None = None, choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): top-k of the softmax; a single gate is p itself, several are over their sum.

  Gates are divided by the sum of those that survive. The balance loss counts choices before any drop: the
  first ones for k <= 2, and for more all of them, over k.

  Args:
    logits:  f32[G,S,E]; mask: bool[G,S]; capacity: C; tokens: see `losses.token_mean`.
    keep:    a key of POLICIES.
    uniform: f32[G,S,E] draws of 'random'; None = the first tokens are kept.
    gumbel:  f32[G,S,E] noise that is added to the logits for the last of one or two choices, or None.
    choose:  how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = choose(probs, k) if choose else chosen(logits, k, gumbel)               # [G, S, n]
  gates = choices.values(probs, choice)
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, probs.shape[-1]), mask)
  rank = dict(random=None if uniform is None else choices.values(uniform, choice), choice=None, probs=gates,
              position=-jnp.broadcast_to(jnp.arange(mask.shape[1])[:, None], choice.shape))[keep]
  kept = edges if rank is None else assignment.strongest(edges, assignment.flat(rank), capacity)
  a = assignment.cap(kept, capacity)
  a = survivors(a) if k > 1 else a
  counted = choice if k > 2 else choice[..., :1]
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, counted, mask, tokens) / counted.shape[-1]),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


def chosen(logits: jax.Array, k: int, gumbel: jax.Array | None) -> jax.Array:
  """Returns i32[G,S,k]: the largest logits, the only or the second one of them after the noise `gumbel`."""
  noisy = logits if gumbel is None else logits + gumbel
  if k != 2:
    return choices.top(noisy, k)
  first = choices.top(logits, 1)
  rest = jnp.where(jax.nn.one_hot(first[..., 0], logits.shape[-1], dtype=bool), -jnp.inf, noisy)
  return jnp.concatenate([first, choices.top(rest, 1)], axis=-1)


def survivors(a: assignment.Assignment) -> assignment.Assignment:
  """Returns `a` [G,k*S] with the weights of a token's live edges over their sum."""
  weight = jnp.where(assignment.live(a), a.weight, 0).reshape(len(a.weight), a.choices, -1)   # [G, k, S]
  weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), FLOOR)
  return a.replace(weight=weight.reshape(a.weight.shape))


class PRMoE(nnx.Module):
  """The gates of PR-MoE (arXiv:2201.05596), as DeepSpeed has them.

  Args:
    k:               choices per token; 1 in the published models.
    capacity_factor: (train, eval) slots per token, for all its choices, rounded up; None = no drops.
    min_capacity:    least slots of an expert.
    keep:            a key of POLICIES; None = 'random' for k = 1, 'choice' for 2, 'probs' for more.
    jitter:          in training the router sees x * U(1 - jitter, 1 + jitter); experts see x.
    sampled:         in training Gumbel noise is added for the only or second choice; None = if k = 2.
    allow_causal:    accept a policy that lets later tokens decide, as the published models do.
  Losses: balance.
  Differs: DeepSpeed draws in evaluation, too; there 'random' keeps the first tokens here. Its capacity
    factor is one of each choice. Its order without draws is undefined for k = 1; here it is that of tokens.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 1,
               capacity_factor: ranges.Factors = (1.0, 1.0), min_capacity: ranges.Natural = 4,
               keep: ranges.Choice(*POLICIES) | None = None, jitter: ranges.Below1 = 0.0,
               sampled: ranges.Flag | None = None, allow_causal: ranges.Flag = False, rngs):
    choices.check_k('pr_moe', k, num_experts)
    if sampled and k > 2:
      raise UserError(f'router pr_moe: sampled=True with k={k}: only one or two choices are drawn; nearest: '
                      'sampled=False')
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.normalize_gates = k > 1
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.keep = keep or {1: 'random', 2: 'choice'}.get(k, 'probs')
    self.jitter = jitter
    self.sampled = k == 2 if sampled is None else sampled
    self.allow_causal = allow_causal

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(noise.jitter(x.astype(jnp.float32), self.jitter,
                                    ctx.fold('jitter').key if ctx.train else None), self.w[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; raises UserError where later tokens decide in a causal stack."""
    limited = self.capacity_factor[0 if ctx.train else 1] is not None
    sees = not POLICIES[self.keep] and limited and (ctx.train or self.keep != 'random')
    if sees and ctx.causal and not self.allow_causal:
      raise UserError(f"router pr_moe: keep='{self.keep}' lets later tokens decide in a causal stack; "
                      "nearest: keep='choice' (or allow_causal=True)")
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor, self.min_capacity, math.ceil)
    key = lambda name: ctx.fold(name).key if ctx.train else None
    gumbel = noise.gumbel(key('sample') if self.sampled else None, *logits.shape)
    a, aux = pr_moe(logits, ctx.mask, capacity, self.k, keep=self.keep, gumbel=gumbel, tokens=ctx.tokens,
                    uniform=choices.draw(key('keep'), *logits.shape) if limited else None, choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
