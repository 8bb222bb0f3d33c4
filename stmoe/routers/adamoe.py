"""AdaMoE: null experts among the choices, so that tokens differ in their real ones (arXiv:2406.13233)."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import balance
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import metrics
from stmoe.errors import UserError


def adamoe(logits: jax.Array, mask: jax.Array, k: int, num_null: int, capacity: int | None = None, *,
           bias: jax.Array | float = 0.0, rows: float | None = None, tokens: jax.Array | None = None,
           choose: contract.Choose | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to its k most probable experts, of which null ones compute nothing.

  Real experts are weighted by their probabilities over the sum of the chosen real ones': nulls take no mass.
  In the loss `balance`, (E+m) sum_i f_i P_i, the f of every null expert is the mean over the m nulls, which
  need no balance among themselves. `plain_balance` has every null's own f.

  Args:
    logits:   f32[G,S,E+m], the m = num_null null experts last.
    mask:     bool[G,S] real tokens; tokens: see `losses.token_mean`; choose: see `contract.OFFERS`.
    k:        choices per token, nulls included; both losses are k at balance.
    capacity: slots of a real expert; None = nothing is dropped. Nulls have room for all.
    bias:     f32[], added to the probabilities of nulls for the choice alone.
    rows:     real experts of a token on average, by which cost is counted; None = k E / (E + m).
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E+m]
  num_experts = probs.shape[-1] - num_null
  null = jnp.arange(probs.shape[-1]) >= num_experts                  # [E+m]
  # [G, S, k]; the lower id on ties: nulls that begin as copies of real experts come after them.
  choice = (choose or choices.top)(probs + jnp.where(null, bias, 0), k)
  gates = jnp.where(choice < num_experts, choices.values(probs, choice), 0)
  total = gates.sum(axis=-1, keepdims=True)
  gates = gates / jnp.where(total > 0, total, 1)                     # 0 where all are null
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, num_experts, num_null), mask)
  edges = edges if rows is None else assignment.expecting(edges, rows * mask.shape[1])
  a = assignment.cap(edges, capacity or mask.shape[1])
  return a, contract.Aux(
      losses=dict(balance=null_balance(probs, choice, mask, num_null, tokens),
                  plain_balance=losses.balance(probs, choice, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens),
      statistics=dict(real=contract.mean(assignment.live(edges).sum(dtype=jnp.float32),
                                         mask.sum(dtype=jnp.float32))))


def null_balance(probs: jax.Array, choice: jax.Array, mask: jax.Array, num_null: int,
                 tokens: jax.Array | None = None) -> jax.Array:
  """Returns f32[], (E+m) sum_i f_i P_i with the mean f of all nulls in place of each one's; k at balance.

  Args:
    probs: f32[G,S,E+m]; choice: i32[G,S,k]; mask: bool[G,S]; tokens: see `losses.token_mean`.
  """
  found, null = balance.shares(probs, choice, mask), jnp.arange(probs.shape[-1]) >= probs.shape[-1] - num_null
  mean = jnp.sum(jnp.where(null, found.f, 0), axis=-1, keepdims=True) / max(num_null, 1)     # [G, 1, 1]
  f = jnp.where(null, mean, found.f)                                 # [G, 1, E+m]
  return choice.shape[-1] * balance.expert_loss(found._replace(f=f), tokens)


class AdaMoE(nnx.Module):
  """Token-adaptive routing with null experts (arXiv:2406.13233). A null expert needs no bank and no slot.

  Args:
    num_null:        m, null experts.
    k:               choices per token, nulls included; at least 2.
    tiled:           the nulls' weights begin as those of the real experts, over and over (the release).
    target:          real experts of a token on average, to which a bias on nulls moves it (LongCat-Flash);
      None = no bias, k E / (E + m) under balance.
    rate:            by which the bias moves after a step: up where a token has more than `target`.
    capacity_factor: (train, eval) slots per token of real experts; None = nothing is dropped.
  Losses: balance, plain_balance. Nulls' logits have no other gradient, so that one of them needs a weight.
  State: bias f32[], with a target.
  Differs: losses are per group. One release has the share of all choices as f: `balance` over k; the other
    averages over no null: `plain_balance`. The bias's sign rule is ours; the paper's annealing is not known.
  """

  normalize_gates = True

  def __init__(self, d_model: int, *, num_experts: ranges.Count, num_null: ranges.Natural,
               k: ranges.Count = 3, tiled: ranges.Flag = False, target: ranges.Positive | None = None,
               rate: ranges.NonNegative = 1e-3, capacity_factor: ranges.Factors = (None, None), rngs):
    width = num_experts + num_null
    if not 2 <= k <= width:
      raise UserError(f'router adamoe: k={k} with num_experts={num_experts}, num_null={num_null}; k is at '
                      f'least 2 (a single gate is 1 and never learns) and at most {width}')
    if target is not None and not (num_null and target < min(k, num_experts)):
      raise UserError(f'router adamoe: target={target} with k={k}, num_experts={num_experts}, num_null='
                      f'{num_null}; nearest: null experts, and a target below k and num_experts')
    self.w = gate.weights(d_model, width, rngs=rngs)
    if tiled:
      self.w[...] = self.w[...][:, jnp.arange(width) % num_experts]
    self.bias = None if target is None else axes.state(jnp.float32(0))
    self.num_experts, self.num_null, self.k = num_experts, num_null, k
    self.target, self.rate, self.capacity_factor = target, rate, tuple(capacity_factor)
    self.needs_loss = ('balance', 'plain_balance') if num_null else ()

  @property
  def commit(self) -> typing.Callable[[contract.Aux], None] | None:
    """What moves the bias f32[] by one optimizer step's Aux; None without a target."""
    return None if self.target is None else self._move

  def _move(self, aux):
    self.bias[...] += self.rate * jnp.sign(aux.statistics['real'].value - self.target)

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E+m] for x [G,S,D]."""
    return gate.logits(x, self.w[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E+m]; see `contract.OFFERS`."""
    capacity = assignment.slots(ctx, self.num_experts, self.capacity_factor)
    a, aux = adamoe(logits, ctx.mask, self.k, self.num_null, capacity, rows=self.target, tokens=ctx.tokens,
                    bias=0.0 if self.bias is None else self.bias[...], choose=choose)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
