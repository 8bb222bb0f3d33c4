"""V-MoE: noisy top-k after the softmax, two balance losses, batch priority (arXiv:2106.05974)."""

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
from stmoe.core.units import priority
from stmoe.errors import UserError


def capacity(num_choices: int, num_experts: int, factor: float, multiple_of: int = 4) -> int:
  """Returns C = ceil(num_choices * factor / num_experts), rounded up to a multiple of `multiple_of`.

  `factor` counts slots per choice, of which a group of S tokens has num_choices = S * k. The
  paper rounds to the nearest number; the ceiling and the multiple are from the released code.

  Args:
    num_choices: S * k.
    multiple_of: 0 or 1 = any.

  >>> capacity(400 * 2, 8, 1.05), capacity(400 * 2, 8, 1.05, 0), capacity(10, 4, 1.0)
  (108, 105, 4)
  """
  slots = max(1, math.ceil(num_choices * factor / num_experts))
  return -(-slots // multiple_of) * multiple_of if multiple_of else slots


def dispatch(gates: jax.Array, mask: jax.Array, k: int, capacity: int, batch_priority: bool = False,
             choose: contract.Choose | None = None) -> tuple[assignment.Edges, assignment.Assignment]:
  """Returns (Edges, Assignment): every token to its k largest gates, which are the weights as they are.

  All first choices of a group come before all second choices. Tokens come in order, or with
  batch priority (BPR, section 4.1) by falling largest gate; ties in order. A choice that
  finds its expert full is dropped.

  Args:
    gates: f32[G,S,E] softmax; mask: bool[G,S]; capacity: C.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  choice = (choose or choices.top)(gates, k)                         # [G, S, k]
  edges = assignment.from_choices(choice, choices.values(gates, choice), gates.shape[-1])
  edges = assignment.kill_padding(edges, mask)
  order = jax.lax.stop_gradient(gates.max(axis=-1)) if batch_priority else None  # [G, S]
  return edges, assignment.cap(edges, capacity, order)


def vmoe(logits: jax.Array, mask: jax.Array, capacity: int, k: int, *, noise: jax.Array | None = None,
         noise_std: float = 0.0, tokens: jax.Array | None = None, batch_priority: bool = False,
         choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux) of V-MoE's routing (section 2 and appendix A).

  Args:
    logits:    f32[G,S,E]; mask: bool[G,S]; capacity: C; tokens: see `losses.token_mean`.
    noise:     f32[G,S,E] draws of N(0, 1), or None: no noise, and then the load loss is 0.
    noise_std: sigma, what the draws are multiplied by.
    choose:    how experts are chosen instead, see `contract.OFFERS`.
  """
  noisy = logits if noise is None else logits + noise_std * noise
  gates = jax.nn.softmax(noisy, axis=-1)                             # [G, S, E]
  edges, a = dispatch(gates, mask, k, capacity, batch_priority, choose)
  clean = jax.nn.softmax(logits, axis=-1)
  first = jnp.argmax(gates, axis=-1)[..., None]                      # [G, S, 1]
  load = jnp.float32(0) if noise is None else losses.load(logits, noisy, k, noise_std, mask, tokens)
  return a, contract.Aux(
      losses=dict(importance=losses.importance(clean, mask, tokens), load=load,
                  gshard=losses.balance(gates, first, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, gates, edges, a, mask, tokens))


class VMoe(nnx.Module):
  """Noisy top-k routing with raw gates (arXiv:2106.05974, sections 2 and 4, appendix A).

  Args:
    k:               choices per token.
    capacity_factor: (train, eval) slots per choice, unlike the other routers' per token; None
      = no drops. With batch priority, evaluation may use a factor far below 1 (section 4).
    multiple_of:     capacity is rounded up to a multiple of this; 0 = to a whole number.
    noise_std:       in training logits get N(0, (noise_std / E)^2), drawn per token and expert.
    batch_priority:  tokens of larger gates are served first (BPR); not causal.
    allow_causal:    accept batch priority where a token then depends on later tokens.
  Losses: importance, load, gshard.
  Differs: initial weights are N(0, 0.02), like other routers'; the released code's have variance 1/D.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               capacity_factor: ranges.Pair(ranges.Positive | None) = (1.05, 1.05),
               multiple_of: ranges.Natural = 4, noise_std: ranges.NonNegative = 1.0,
               batch_priority: ranges.Flag = False, allow_causal: ranges.Flag = False, rngs):
    choices.check_k('vmoe', k, num_experts)
    if any(factor is not None and not factor > 0 for factor in capacity_factor):
      raise UserError(f'router vmoe: capacity_factor={tuple(capacity_factor)}; both are above 0, '
                      'or None for no drops')
    self.w = gate.weights(d_model, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.k = k
    self.capacity_factor = tuple(capacity_factor)
    self.multiple_of = multiple_of
    self.noise_std = noise_std
    self.batch_priority = batch_priority
    self.allow_causal = allow_causal

  undecodable = property(priority.undecodable)
  logits = gate.plain

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; raises UserError for batch priority in a causal stack."""
    priority.check(self, ctx)
    size, factor = logits.shape[1], self.capacity_factor[0 if ctx.train else 1]
    slots = size
    if factor is not None:                                           # an expert has a token once at most
      slots = min(size, capacity(size * self.k, self.num_experts, factor, self.multiple_of))
    key = ctx.fold('noise').key if ctx.train and self.noise_std else None
    noise = None if key is None else jax.random.normal(key, logits.shape)
    a, aux = vmoe(logits, ctx.mask, slots, self.k, noise=noise, noise_std=self.noise_std / self.num_experts,
                  tokens=ctx.tokens, batch_priority=self.batch_priority, choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
