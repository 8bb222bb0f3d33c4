"""Deterministic routing of the sparse all-MLP: feature chunk i to expert i (arXiv:2203.06850)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import metrics
from stmoe.errors import UserError


def deterministic(mask: jax.Array, num_experts: int) -> contract.Decision:
  """Returns (Assignment, Aux): of S tokens in order, the i-th S/E to expert i with weight 1.

  Nothing depends on the content, so no position depends on later positions. Buffers are exactly full.

  Args:
    mask: bool[G,S] real tokens; padding goes nowhere.
  """
  size = mask.shape[1]
  chunk = jnp.arange(size) * num_experts // size                     # [S]
  expert = jnp.broadcast_to(chunk[:, None], (*mask.shape, 1))        # [G, S, 1]
  edges = assignment.from_choices(expert, jnp.ones(expert.shape, jnp.float32), num_experts)
  edges = assignment.kill_padding(edges, mask)
  a = assignment.cap(edges, size // num_experts)
  reported = dict(drop_frac=metrics.drop_frac(edges, a))             # 0
  return a, contract.Aux(losses={}, load=metrics.load(edges), metrics=reported)


class SmlpDeterministic(nnx.Module):
  """Chunk i of the features to expert i; tokens are the channels of a sequence (`layers/gmlp.py`).

  With the bank `feature` this is the spatial gating unit of E heads. No parameters.
  Losses: none.
  """

  def __init__(self, d_model: int, *, num_experts: ranges.Count, rngs):
    self.num_experts = num_experts

  def __call__(self, x: jax.Array, ctx: contract.Context, carry: contract.Carry) -> contract.Routed:
    """Returns Routed for x [G,S,D]; raises UserError unless E divides S."""
    if x.shape[1] % self.num_experts:
      raise UserError(f'router smlp_deterministic: {x.shape[1]} channels are not {self.num_experts} equal '
                      f'chunks; num_experts must divide them')
    return contract.Routed(*deterministic(ctx.mask, self.num_experts), carry)
