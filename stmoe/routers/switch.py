"""Switch Transformer: every token to its one most probable expert (arXiv:2101.03961)."""

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


def switch(logits: jax.Array, mask: jax.Array, capacity: int, tokens: jax.Array | None = None,
           explore: choices.Picks = choices.best, uniform: jax.Array | None = None,
           choose: contract.Choose | None = None, num_virtual: int = 0) -> contract.Decision:
  """Returns (Assignment, Aux): token s to e* = argmax_e p_e, weighted by p_e* (section 2.1).

  The weight is the probability itself, never renormalised: besides the losses, the weight is the
  router's only gradient. Earlier tokens of a group come first.

  Args:
    logits:   f32[G,S,E], or f32[G,S,E+Z] with num_virtual = Z.
    mask:     bool[G,S] real tokens; padding goes nowhere.
    capacity: C.
    tokens:   divisor of the losses, see `losses.token_mean`.
    explore:  a value of EXPLORATION: how the expert is chosen from p.
    uniform:  f32[G,S] draws for `explore`, or None.
    choose:   how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  fixed = jax.lax.stop_gradient(probs)
  choice = choose(fixed, 1) if choose else explore(fixed, uniform)[..., None]      # [G, S, 1]
  num_experts = probs.shape[-1] - num_virtual
  edges = assignment.from_choices(choice, choices.values(probs, choice), num_experts, num_virtual)
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, capacity)
  return a, contract.Aux(
      losses=dict(balance=losses.balance(probs, choice, mask, tokens), z=losses.z(logits, mask, tokens)),
      load=metrics.load(edges),
      metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


# Two of the four policies of appendix C; the other two change the router's input: dropout and jitter.
EXPLORATION = {'argmax': choices.best, 'sample': choices.sample}


class Switch(nnx.Module):
  """Top-1 routing with a balance loss (arXiv:2101.03961, sections 2.1 and 2.2).

  Args:
    capacity_factor: (train, eval) slots per token; None = nothing is dropped.
    min_capacity:    least slots of an expert.
    jitter:          in training the router sees x * U(1 - jitter, 1 + jitter); experts see x.
    input_dropout:   in training the router sees x with this share of its entries dropped.
    exploration:     'argmax', or 'sample': in training the expert is drawn from p.
    num_virtual:     Z, how many of the experts are virtual; the layer says so.
  Losses: balance, z.
  Differs: losses leave padding out, Mesh-TensorFlow counts it in f and P.
  """

  k = 1                              # choices of a token

  def __init__(self, d_model: int, *, num_experts: ranges.Count,
               capacity_factor: ranges.Factors = (1.25, 2.0), min_capacity: ranges.Natural = 4,
               jitter: ranges.Below1 = 1e-2, input_dropout: ranges.Below1 = 0.0,
               exploration: ranges.Choice(*EXPLORATION) = 'argmax', num_virtual=0, rngs):
    # N(0, 0.02) is flaxformer's, stated there to be slightly better than the paper's scaled init.
    self.w = gate.weights(d_model, num_experts + num_virtual, rngs=rngs)
    self.num_experts = num_experts
    self.num_virtual = num_virtual
    self.capacity_factor = tuple(capacity_factor)
    self.min_capacity = min_capacity
    self.jitter = jitter
    self.input_dropout = input_dropout
    choices.named(EXPLORATION, exploration, 'exploration')
    self.exploration = exploration

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    noisy = ctx if ctx.train else ctx.replace(key=None)
    x = x.astype(jnp.float32)
    x = noise.jitter(x, self.jitter, noisy.fold('jitter').key)
    x = noise.dropout(x, self.input_dropout, noisy.fold('dropout').key)
    return gate.logits(x, self.w[...])

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    capacity = assignment.slots(ctx, self.w.shape[1], self.capacity_factor, self.min_capacity)
    key = ctx.fold('sample').key if ctx.train else None
    uniform = choices.draw(key, *logits.shape[:2])                   # [G, S]
    a, aux = switch(logits, ctx.mask, capacity, ctx.tokens, EXPLORATION[self.exploration], uniform, choose,
                    self.num_virtual)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
