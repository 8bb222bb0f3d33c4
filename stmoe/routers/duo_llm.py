"""Duo-LLM: a big, a small or no module for every token and layer, within one budget (arXiv:2410.10846).
The paper has no public code; details are those of a reading note (unverified)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import metrics
from stmoe.errors import UserError

SPENT = 'duo_llm_spent'              # in the carry: f32[B,T,2], the sum of P_big below and how many layers
SCOPES: dict[str, int | tuple[int, int]] = {'group': 1, 'microbatch': (0, 1)}       # axes of [G,S]


def duo_llm(probs: jax.Array, mask: jax.Array, choice: jax.Array | None, num_virtual: int = 0
            ) -> tuple[assignment.Edges, jax.Array]:
  """Returns (Edges, P_big f32[G,S]): token s to its choices with weight 1, or to all, weighed by probs.

  Args:
    probs:  f32[G,S,E+Z], in the order big (the E real experts), small, skip.
    choice: i32[G,S,n], or None = all.
  """
  num_experts, weight = probs.shape[-1] - num_virtual, probs
  if choice is None:
    choice = jnp.broadcast_to(jnp.arange(probs.shape[-1], dtype=jnp.int32), probs.shape)
  else:
    weight = jnp.ones(choice.shape, probs.dtype)
  edges = assignment.from_choices(choice, weight, num_experts, num_virtual)
  return assignment.kill_padding(edges, mask), probs[..., :num_experts].sum(axis=-1)


def budget(big: jax.Array, spent: jax.Array, mask: jax.Array, target: float, scope: str,
           tokens: jax.Array) -> jax.Array:
  """Returns f32[], what a layer adds to (mean of P_big over tokens and layers - target)^2.

  Over layers it adds up to this one square of all layers: weigh it with 'sum'.

  Args:
    big:    f32[G,S], P_big of this layer; spent: f32[G,S,2], of the layers below, see SPENT.
    scope:  whose tokens one square is of, a key of SCOPES; several squares are weighed by their tokens.
    tokens: divisor, see `losses.token_mean`.
  """
  axis, below = SCOPES[scope], jnp.max(spent[..., 1])
  count = jnp.sum(mask, axis=axis, dtype=jnp.float32)                # [G] or []
  mean = lambda a: jnp.sum(jnp.where(mask, a, 0), axis=axis) / jnp.maximum(count, 1)
  before = jnp.where(below > 0, jnp.square(mean(spent[..., 0]) / jnp.maximum(below, 1) - target), 0)
  after = jnp.square(mean(spent[..., 0] + big) / (below + 1) - target)
  return jnp.sum(count * (after - before)) / tokens


class DuoLLM(nnx.Module):
  """The choice of a module of every token: drawn in stage 1, learned in stage 2 (arXiv:2410.10846).

  Around it is layer `moe` with one expert, the big module, and virtual=(dict(name='small'), 'zero').

  Args:
    stage: 'random': in training every token draws a module uniformly, in evaluation it has `at_eval`.
      'learned': P = softmax(tau W x); in training all modules weighed by P, in evaluation the likeliest one.
    at_eval: 'big', 'small' or 'skip', in evaluation of stage 'random'; `answer/routes.py` has other routes.
    target:  share of (token, layer) pairs that are to be big, over all layers; cost is counted by it.
    tau:     its first and last value; it grows geometrically over total_steps.
    scope:   of the budget, a key of SCOPES; 'microbatch' is the paper's, where a step has one microbatch.
    num_virtual: small and skip; from the layer.
  Losses: budget (with 'sum' over layers).
  Differs: the schedule of tau is ours, the note only says that it grows.
  """

  k = 1

  def __init__(self, d_model: int, *, num_experts: ranges.Count = 1,
               stage: ranges.Choice('random', 'learned') = 'learned',
               at_eval: ranges.Choice('big', 'small', 'skip') = 'big', target: ranges.PartOf1 = 0.5,
               tau: ranges.Row(ranges.Positive, ranges.Positive) = (1.0, 16.0),
               total_steps: ranges.Count = 10_000, scope: ranges.Choice(*SCOPES) = 'group', num_virtual=0,
               rngs):
    self.fixed = dict(big=0, small=num_experts, skip=num_experts + 1)[at_eval]
    if self.fixed >= num_experts + num_virtual:
      raise UserError(f"router duo_llm: at_eval={at_eval!r} of {num_virtual} virtual experts; nearest: "
                      "at_eval='big'")
    self.w = gate.weights(d_model, num_experts + num_virtual, rngs=rngs)
    self.num_experts, self.num_virtual, self.target = num_experts, num_virtual, target
    self.stage, self.scope, self.tau, self.total_steps = stage, scope, tuple(tau), total_steps
    # All modules of a token are computed in training, of which `target` is counted.
    self.more_rows = num_experts - target if stage == 'learned' else 0.0

  def init_carry(self, x: jax.Array) -> dict[str, jax.Array]:
    """Returns what no layer has spent, f32[B,T,2] zeros."""
    return {SPENT: jnp.zeros((*x.shape[:2], 2))}

  logits = gate.plain

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E+Z]; see `contract.OFFERS`."""
    probs = jax.nn.softmax(self.temperature(ctx) * logits, axis=-1)
    edges, big = duo_llm(probs, ctx.mask, self._choice(logits, ctx, choose), self.num_virtual)
    if not choose:
      share = self.target if self.stage == 'learned' else self.num_experts / logits.shape[-1]
      edges = assignment.expecting(edges, share * ctx.mask.shape[1])
    a = assignment.cap(edges, ctx.mask.shape[1])
    spent = carry.get(SPENT, jnp.zeros((*ctx.mask.shape, 2)))        # by itself a router is the first layer's
    loss = budget(big, spent, ctx.mask, self.target, self.scope, ctx.tokens)
    aux = contract.Aux(losses=dict(budget=loss), load=metrics.load(edges),
                       metrics=metrics.routing(logits, probs, edges, a, ctx.mask, ctx.tokens))
    more = {SPENT: spent + jnp.stack([big, jnp.ones_like(big)], axis=-1)} if SPENT in carry else {}
    return contract.Routed(a, aux, carry | more)

  def temperature(self, ctx: contract.Context) -> jax.Array:
    """Returns f32[], the factor tau of logits at the step of `ctx`; its last value in evaluation."""
    first, last = self.tau
    return first * (last / first) ** (jnp.minimum(ctx.step / self.total_steps, 1.0) if ctx.train else 1.0)

  def _choice(self, logits, ctx, choose):
    """i32[G,S,n], the modules of tokens, or None = all of them."""
    if choose:
      return choose(logits, 1)
    if self.stage == 'learned':
      return None if ctx.train else choices.top(logits, 1)
    shape, key = (*logits.shape[:2], 1), ctx.fold('module').key if ctx.train else None
    return jnp.full(shape, self.fixed, jnp.int32) if key is None else jax.random.randint(
        key, shape, 0, logits.shape[-1], jnp.int32)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
