"""GraphSAGE with means over neighbours (arXiv:1706.02216)."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe.core import contract
from stmoe.parts import graph as graphs


class Convolution(nnx.Module):
  """mean(neighbours) w + b + x w': a node without neighbours has the mean 0."""

  def __init__(self, fan_in: int, fan_out: int, axis: str, *, rngs):
    self.neighbours = graphs.Linear(fan_in, fan_out, axis, rngs=rngs)
    self.own = graphs.Linear(fan_in, fan_out, axis, use_bias=False, rngs=rngs)

  def __call__(self, x: jax.Array, graph: graphs.Graph, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (f32[B,N,D'], {}) for x [B,N,D]."""
    mean = graph.neighbours(x) / jnp.maximum(graph.degree(x.shape[1]), 1)            # [B, N, D]
    return self.neighbours(mean) + self.own(x), {}


class Sage(graphs.Network):
  """A GraphSAGE network, see `graphs.Network`."""

  def convolution(self, i: int, fan_in: int, fan_out: int, axis: str, rngs) -> Convolution:
    """Returns the i-th convolution [fan_in,fan_out]."""
    return Convolution(fan_in, fan_out, axis, rngs=rngs)
