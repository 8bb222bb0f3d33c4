"""A graph convolution network (arXiv:1609.02907): means over neighbours, weighed by degrees."""

from flax import nnx
import jax

from stmoe import axes
from stmoe.core import contract
from stmoe.parts import graph as graphs


class Convolution(nnx.Module):
  """D^-1/2 (A + I) D^-1/2 x w + b, D the degrees of A + I (arXiv:1609.02907, eq. 2)."""

  def __init__(self, fan_in: int, fan_out: int, axis: str, *, rngs):
    self.linear = graphs.Linear(fan_in, fan_out, axis, use_bias=False, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (fan_out,), axis, rngs=rngs)

  def __call__(self, x: jax.Array, graph: graphs.Graph, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (f32[B,N,D'], {}) for x [B,N,D]."""
    root = jax.lax.rsqrt(graph.degree(x.shape[1]) + 1)               # [B, N, 1]
    scaled = root * self.linear(x)                                   # [B, N, D']
    return root * (graph.neighbours(scaled) + scaled) + self.b[...], {}


class Gcn(graphs.Network):
  """A GCN, see `graphs.Network`."""

  def convolution(self, i: int, fan_in: int, fan_out: int, axis: str, rngs) -> Convolution:
    """Returns the i-th convolution [fan_in,fan_out]."""
    return Convolution(fan_in, fan_out, axis, rngs=rngs)
