"""MPOE's router: top-1, gates of value 1 that carry the gradient, random drops (arXiv:2203.01104)."""

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


def mpoe(logits: jax.Array, mask: jax.Array, capacity: int, *, scale_prob: bool = False,
         priority: jax.Array | None = None, tokens: jax.Array | None = None,
         choose: contract.Choose | None = None, num_virtual: int = 0,
         pass_dropped: bool = False) -> contract.Decision:
  """Returns (Assignment, Aux): token s to e* = argmax_e p_e, weighted by p_e* / stop_gradient(p_e*) = 1.

  Args:
    logits:     f32[G,S,E], or f32[G,S,E+Z] with num_virtual = Z; one less with pass_dropped.
    mask:       bool[G,S] real tokens; padding goes nowhere.
    capacity:   C.
    scale_prob: the weight is p_e* itself.
    priority:   f32[G,S]: of an expert's tokens those with the largest stay; None = the first.
    tokens:     divisor of the losses, see `losses.token_mean`.
    choose:     how experts are chosen instead, see `contract.OFFERS`.
    pass_dropped: the last virtual expert gets the tokens that are dropped.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.choose)(probs, 1)                      # [G, S, 1]
  gates = choices.values(probs, choice)
  gates = gates if scale_prob else gates / jax.lax.stop_gradient(gates)
  num_experts = probs.shape[-1] - num_virtual + pass_dropped
  edges = assignment.kill_padding(assignment.from_choices(choice, gates, num_experts, num_virtual), mask)
  a = assignment.cap(edges, capacity, priority)
  if pass_dropped:
    dropped = assignment.live(edges) & ~assignment.reaching(a)
    a = a.replace(expert=jnp.where(dropped, a.dead - 1, a.expert))
  return a, contract.Aux(losses=dict(balance=losses.balance(probs, choice, mask, tokens)),
                         load=metrics.load(edges),
                         metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class Mpoe(nnx.Module):
  """Top-1 routing of MPOE on T5 (arXiv:2203.01104): a softmax with bias; the gate only carries the gradient.

  Args:
    scale_prob:      outputs times the probability; otherwise times 1, through which the router learns.
    capacity_factor: (train, eval) slots per token; None = nothing is dropped, as released.
    min_capacity:    least slots of an expert.
    pass_dropped:    a dropped token goes to the layer's last virtual expert, which the router does not
      choose: virtual=('copy',) of the layer passes it through, as released. Otherwise it gets zeros.
    num_virtual:     Z, how many of the experts that it routes among are virtual; from the layer.
  Losses: balance; the released T5 adds none, its GPT-2 adds 0.01 of it.
  Differs: the code multiplies what goes into an expert by the gate, here its output: the same for experts
    without bias whose activation is ReLU. Which tokens are dropped is random in training; in evaluation,
    where the code draws as well, the first stay. Capacities are those of a group, there of a batch.
  """

  k = 1                              # choices of a token

  def __init__(self, d_model: int, *, num_experts: ranges.Count, scale_prob: ranges.Flag = False,
               capacity_factor: ranges.Factors = (None, None), min_capacity: ranges.Natural = 1,
               pass_dropped: ranges.Flag = False, num_virtual=0, rngs):
    if pass_dropped and not num_virtual:
      raise UserError('router mpoe: pass_dropped=True, but the layer has no virtual expert for dropped '
                      "tokens; nearest: virtual=('copy',) of the layer")
    width = num_experts + num_virtual - pass_dropped
    self.w = gate.weights(d_model, width, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (width,), 'unmodeled', rngs=rngs)
    self.num_experts = num_experts
    self.num_virtual = num_virtual
    self.scale_prob = scale_prob
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.pass_dropped = pass_dropped

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return gate.logits(x, self.w[...]) + self.b[...]

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    size, factor = logits.shape[1], self.capacity_factor[0 if ctx.train else 1]
    # int(factor * S / E), where other routers round.
    capacity = size if factor is None else min(size, max(int(factor * size / self.num_experts),
                                                         self.min_capacity, 1))
    key = ctx.fold('drop').key if ctx.train else None
    a, aux = mpoe(logits, ctx.mask, capacity, scale_prob=self.scale_prob,
                  priority=choices.draw(key, *logits.shape[:2]), tokens=ctx.tokens, choose=choose,
                  num_virtual=self.num_virtual, pass_dropped=self.pass_dropped)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
