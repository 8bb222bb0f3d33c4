"""Union of Experts: the shards of one network as experts, whose outputs are added up (arXiv:2503.02495)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate as gates
from stmoe.core import metrics
from stmoe.core.units import shards


def union_of_experts(logits: jax.Array, mask: jax.Array, k: int, m: int | None, *, over: str = 'batch',
                     gate: str = 'none', capacity: float = 1.0, epsilon: float = 1e-8,
                     tokens: jax.Array | None = None, choose: contract.Choose | None = None
                     ) -> contract.Decision:
  """Returns (Assignment, Aux): every expert takes m tokens of the group, or all that score it above 0.

  The metric `filled_frac` is the share of computed rows whose score is 0.

  Args:
    logits: f32[G,S,E]; mask: bool[G,S] real tokens; tokens: see `losses.token_mean`.
    m:      tokens of an expert, see `shards.selected`; None = all that have the expert among their k.
    over, capacity, epsilon: see `shards.scores`; gate: a key of `shards.GATES`.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  probs, (_, size, experts) = jax.nn.softmax(logits, axis=-1), logits.shape
  g = shards.scores(probs, mask, k, over, capacity, epsilon)         # [G, S, E]
  if choose or m is None:
    choice = (choose or choices.top)(probs, k)                       # [G, S, k]
    wanted = assignment.from_choices(choice, choices.values(g, choice), experts)
  else:
    wanted = shards.edges(shards.selected(g, mask, m), g)
  wanted = assignment.kill_padding(wanted, mask)
  filled = jnp.sum(assignment.live(wanted) & (wanted.weight <= 0), dtype=jnp.float32)
  a = assignment.cap(wanted.replace(weight=shards.GATES[gate](wanted.weight, k / experts)), size)
  load, numbers = metrics.load(wanted), metrics.routing(logits, probs, wanted, a, mask, tokens)
  return a, contract.Aux(losses={}, load=load,
                         metrics=dict(numbers, filled_frac=filled / jnp.maximum(load.sum(), 1)))


class UnionOfExperts(nnx.Module):
  """Data selection among shards of one network; with k = E and all tokens they are the dense layer.

  Args:
    k:      experts that a token scores above 0.
    select: 'data': every expert computes its m best tokens of a sequence, chosen among later ones, too;
      'causal': every expert computes all tokens that score it above 0, so k of E a token.
    share:  m / S of 'data', m rounded down.
    over, capacity, epsilon: see `shards.scores`. Over the 'batch', what is beside a sequence changes what is
      selected of it.
    gate:   'none': scores select and nothing trains them, W and b are constants (released code);
      'multiply': they weigh outputs; 'straight': outputs weigh k / E, with the gradient of the scores.
    allow_causal: accept 'data' in a stack in which a token must not depend on later tokens.
  Losses: none.
  Differs: the default is over='experts'. What fills an expert up is not defined in the code. Selection in a
    packed row is of the row. 'causal' and 'straight' are ours, the paper has neither.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2,
               select: ranges.Choice(*shards.SELECT) = 'data', share: ranges.PartOf1 = 0.5,
               over: ranges.Choice(*shards.OVER) = 'experts', gate: ranges.Choice(*shards.GATES) = 'none',
               capacity: ranges.Positive = 1.0, epsilon: ranges.Positive = 1e-8,
               allow_causal: ranges.Flag = False, rngs):
    choices.check_k('union_of_experts', k, num_experts)
    shards.check_gate('router union_of_experts', select, over, gate)
    self.w, self.b = shards.weights(d_model, num_experts, gate, rngs)
    self.num_experts, self.k, self.select, self.share = num_experts, k, select, share
    self.over, self.gate, self.capacity, self.epsilon = over, gate, capacity, epsilon
    self.allow_causal = allow_causal
    self.undecodable = shards.leak('union_of_experts', select)

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gates.logits(x, self.w[...]) + self.b[...]

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`. Raises UserError in a causal stack."""
    shards.check('router union_of_experts', ctx, self.select, self.allow_causal)
    m = shards.places(self.share, logits.shape[1]) if self.select == 'data' else None
    return contract.Routed(*union_of_experts(
        logits, ctx.mask, self.k, m, over=self.over, gate=self.gate, capacity=self.capacity,
        epsilon=self.epsilon, tokens=ctx.tokens, choose=choose), carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
