"""Switch-DiT's gate: the k largest of a softmax on what a token is read by, the timestep of its image."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core import gate
from stmoe.core import metrics


def switch_dit(logits: jax.Array, mask: jax.Array, k: int, tokens: jax.Array | None = None,
               choose: contract.Choose | None = None, num_virtual: int = 0) -> contract.Decision:
  """Returns (Assignment, Aux): token s to its k most probable experts, weighted by their probabilities.

  p = softmax(logits); the weights are not normalised again, and nothing is dropped (arXiv:2403.09176).

  Args:
    logits: f32[G,S,E], or f32[G,S,E+Z] with num_virtual = Z.
    mask:   bool[G,S] real tokens; tokens: divisor of the metrics.
    choose: how experts are chosen instead, see `contract.OFFERS`.
  """
  probs = jax.nn.softmax(logits, axis=-1)                            # [G, S, E]
  choice = (choose or choices.choose)(probs, k)                      # [G, S, k]
  edges = assignment.from_choices(choice, choices.values(probs, choice), probs.shape[-1] - num_virtual,
                                  num_virtual)
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, mask.shape[1])
  return a, contract.Aux(losses={}, load=metrics.load(edges),
                         metrics=metrics.routing(logits, probs, edges, a, mask, tokens))


class SwitchDit(nnx.Module):
  """The gate p = softmax(SiLU(x) W + b) and its k largest entries as they are (arXiv:2403.09176).

  In the paper x is the embedding of the timestep, the same for all tokens of an image: the block
  `around=switch_dit` reads it to the router. Routing is then of images, not of tokens.

  Args:
    k:           choices per token (paper: 2 of 3).
    num_virtual: Z, how many of the experts are virtual; the layer says so.
  Losses: none; the diffusion prior is a loss of the blocks together. The tokens of an image have the same
    experts, so that a balance of its tokens says nothing.
  """

  normalize_gates = False

  def __init__(self, d_model: int, *, num_experts: ranges.Count, k: ranges.Count = 2, num_virtual=0, rngs):
    choices.check_k('switch_dit', k, num_experts, num_virtual)
    width = num_experts + num_virtual
    self.w = gate.weights(d_model, width, rngs=rngs, init=nnx.initializers.xavier_uniform())
    self.b = axes.param(nnx.initializers.zeros, (width,), 'unmodeled', rngs=rngs)
    self.num_experts = num_experts
    self.num_virtual = num_virtual
    self.k = k

  def scores(self, x: jax.Array) -> jax.Array:
    """Returns f32[G,S,E], the logits for x [G,S,D]."""
    return gate.logits(jax.nn.silu(x.astype(jnp.float32)), self.w[...]) + self.b[...]

  def logits(self, x: jax.Array, ctx: contract.Context) -> jax.Array:
    """Returns f32[G,S,E] for x [G,S,D]."""
    return self.scores(x)

  def decide(self, logits: jax.Array, ctx: contract.Context, carry: contract.Carry,
             choose: contract.Choose | None = None) -> contract.Routed:
    """Returns Routed for logits f32[G,S,E]; see `contract.OFFERS`."""
    a, aux = switch_dit(logits, ctx.mask, self.k, ctx.tokens, choose, self.num_virtual)
    return contract.Routed(a, aux, carry)

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]."""
    return self.decide(self.logits(x, ctx), ctx, carry)
