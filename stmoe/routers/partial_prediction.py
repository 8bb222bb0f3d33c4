"""Partial prediction of the sparse all-MLP: feature chunks routed by a prefix (arXiv:2203.06850)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import contract
from stmoe.core import gate
from stmoe.errors import UserError
from stmoe.routers import switch


def chunk_means(x: jax.Array, mask: jax.Array, num_chunks: int) -> jax.Array:
  """Returns f32[G,E,P], the means over the real channels (mask bool[G,S]) of E chunks of x [G,S,P]."""
  groups, size, width = x.shape
  real = mask.reshape(groups, num_chunks, -1, 1)                     # [G, E, S/E, 1]
  chunks = x.astype(jnp.float32).reshape(groups, num_chunks, -1, width)
  return jnp.sum(jnp.where(real, chunks, 0), axis=2) / jnp.maximum(jnp.sum(real, axis=2), 1)


class PartialPrediction(nnx.Module):
  """Each of E feature chunks to its most probable expert, as the first positions of the sequence tell.

  Tokens are the channels of a sequence and D its positions (`layers/gmlp.py`). Only the first
  P = ceil(prefix * D) positions are read, so outputs at positions >= P depend on nothing later than
  themselves. Outputs within the prefix do, and must not be scored: `data.loss_from` = prefix.
  All channels of a chunk go to one expert, weighted by its probability.

  Args:
    prefix:       share of the positions that decide (0.2 in the paper).
    allow_causal: accept a causal stack; whoever sets it has set data.loss_from, too.
  Losses: balance (of chunks over experts), z.
  Differs: the paper is not clear on the router's input and on balance. Ours: the mean of a chunk's
    channels at each prefix position, and the balance loss of Switch over chunks.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, prefix: ranges.PartOf1 = 0.2,
               allow_causal: ranges.Flag = False, rngs):
    width = ranges.rounded_up(prefix * d_model)
    self.w = gate.weights(width, num_experts, rngs=rngs)
    self.num_experts = num_experts
    self.prefix = prefix
    self.allow_causal = allow_causal
    self.rows_per_sequence = num_experts                             # w is passed by chunks

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError in a causal stack, or unless E divides S."""
    size, length = x.shape[1:]
    if ctx.causal and not self.allow_causal:
      raise UserError('router partial_prediction lets tokens of the prefix decide for each other in a '
                      f'causal stack; nearest: data.loss_from={self.prefix} with allow_causal=True')
    if size % self.num_experts:
      raise UserError(f'router partial_prediction: {size} channels are not {self.num_experts} equal chunks; '
                      'num_experts must divide them')
    width = ranges.rounded_up(self.prefix * length)
    means = chunk_means(x[..., :width], ctx.mask, self.num_experts)  # [G, E, P]
    logits = jnp.einsum('gcp,pe->gce', means, self.w[:width], precision='highest')
    logits = jnp.repeat(logits, size // self.num_experts, axis=1)    # [G, S, E]
    return contract.Routed(*switch.switch(logits, ctx.mask, size, ctx.tokens), carry)
