"""BASE: in training every expert gets the same number of tokens (arXiv:2103.16716)."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import losses
from stmoe.core import matching
from stmoe.core import metrics
from stmoe.errors import UserError


def base(affinities: jax.Array, mask: jax.Array, choice: jax.Array, capacity: int,
         tokens: jax.Array | None = None) -> contract.Decision:
  """Returns (Assignment, Aux): token s to expert `choice`, weighted by sigmoid(h_s . w_choice) (section 3).

  With an expert that returns f(h) - h and the residual connection of the block, the block computes
  y = a f(h) + (1 - a) h. The gate a is the router's only gradient; it compares no experts.

  Args:
    affinities: f32[G,S,E] h . w_e.
    mask:       bool[G,S] real tokens; padding goes nowhere.
    choice:     i32[G,S]: balanced (`matching`) in training, else the largest affinity.
    capacity:   C; S/E if the choice is balanced, S if not.
    tokens:     see `losses.token_mean`.
  """
  choice = choice[..., None]                                         # [G, S, 1]
  gate = choices.values(jax.nn.sigmoid(affinities), choice)
  edges = assignment.from_choices(choice, gate, affinities.shape[-1])
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, capacity)
  fixed = jax.lax.stop_gradient(affinities)
  numbers = metrics.routing(fixed, jax.nn.softmax(fixed, axis=-1), edges, a, mask, tokens)
  gap, displaced = gaps(fixed, mask, choice)
  numbers |= dict(assignment_gap=gap.value, displaced_frac=displaced)
  return a, contract.Aux(losses={}, load=metrics.load(edges), metrics=numbers,
                         statistics=dict(assignment_gap=gap))


def gaps(affinities: jax.Array, mask: jax.Array,
         choice: jax.Array) -> tuple[contract.Statistic, jax.Array]:
  """Returns what balance costs, (gap, displaced f32[]), both 0 if every token has its favourite.

  gap: how far the total affinity is below that of every token's favourite, as a share of the distance of a
    random assignment: 1 = no better than chance.
  displaced: the share of tokens that did not get their favourite.

  Args:
    affinities: f32[G,S,E]; mask: bool[G,S]; choice: i32[G,S,1].
  """
  affinities = jnp.where(mask.astype(bool)[..., None], affinities, 0)
  best, mean = affinities.max(axis=-1), affinities.mean(axis=-1)     # [G, S] twice
  lost = best - choices.values(affinities, choice)[..., 0]
  displaced = losses.token_mean((lost > 0).astype(jnp.float32), mask)
  return contract.mean(jnp.sum(lost), jnp.sum(best - mean)), displaced


# How training assigns tokens: (affinities f32[G,S,E], mask bool[G,S], order of experts i32[G,E]) -> i32[G,S].
ASSIGNMENTS: dict[str, typing.Callable[..., jax.Array]] = {
    'auction': lambda affinities, mask, order: matching.auction(affinities, mask),
    'greedy_balanced': matching.greedy_balanced,
}


class Base(nnx.Module):
  """Balanced assignment of tokens to experts in training, the largest affinity in evaluation.

  No capacity, no drops, no loss: in training each of the E experts gets S/E tokens of a group of S.
  The router is made for `experts/residual.py` in a block with norm=False, where it sees the residual stream
  h.

  Args:
    assignment:   'auction' (nearly the largest total affinity) or 'greedy_balanced' (experts choose
      one after the other, in random order; cheaper and worse).
    allow_causal: accept that in training later tokens of a causal stack decide, through the balance.
      A training loss is then no language-modelling score; evaluation is causal.
  Losses: none.
  Differs: padding takes the places that real tokens leave (the reference does not know padding).
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count,
               assignment: ranges.Choice(*ASSIGNMENTS) = 'auction', allow_causal: ranges.Flag = False, rngs):
    choices.named(ASSIGNMENTS, assignment, 'assignment')
    # Column e is the embedding of expert e; orthogonal columns of length 0.1 (E <= D).
    self.w = gate.weights(d_model, num_experts, rngs=rngs, init=nnx.initializers.orthogonal(0.1))
    self.num_experts = num_experts
    self.assignment = assignment
    self.allow_causal = allow_causal

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError in training if E does not divide S, or causal."""
    affinities = gate.logits(x, self.w[...])
    fixed = jax.lax.stop_gradient(affinities)
    size = x.shape[1]
    if ctx.train:
      self._check(size, ctx.causal)
      choice = ASSIGNMENTS[self.assignment](fixed, ctx.mask, self._order(x.shape[0], ctx))
      capacity = size // self.num_experts
    else:
      choice, capacity = fixed.argmax(axis=-1), size
    return contract.Routed(*base(affinities, ctx.mask, choice, capacity, ctx.tokens), carry)

  def _order(self, groups, ctx):
    """i32[G,E]: a random order of experts for every group, or None without a key."""
    key = ctx.fold('order').key
    if key is None:
      return None
    experts = jnp.broadcast_to(jnp.arange(self.num_experts), (groups, self.num_experts))
    return jax.random.permutation(key, experts, axis=1, independent=True)

  def _check(self, size, causal):
    if causal and not self.allow_causal:
      raise UserError('router base: in training its balanced assignment lets later tokens decide in a causal '
                      'stack; set allow_causal=True (evaluation is causal), or use router switch')
    if size % self.num_experts:
      low = size // self.num_experts * self.num_experts
      near = ', '.join(str(n) for n in (low, low + self.num_experts) if n)
      raise UserError(f'router base: num_experts={self.num_experts} does not divide the {size} tokens of a '
                      f'routing group; nearest group_size: {near}')
