"""A graph isomorphism network (arXiv:1810.00826) with epsilon 0."""

from flax import nnx
import jax

from stmoe.core import contract
from stmoe.parts import graph as graphs


class Convolution(nnx.Module):
  """MLP(x + sum of neighbours) (arXiv:1810.00826, eq. 4.1), the MLP with batch norms of its own."""

  def __init__(self, network: graphs.Network):
    self.network = network

  def __call__(self, x: jax.Array, graph: graphs.Graph, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (f32[B,N,D'], dict name -> Statistic) for x [B,N,D]."""
    return self.network(x + graph.neighbours(x), graph, ctx)


class Gin(graphs.Network):
  """A GIN whose every convolution holds an MLP of as many layers as the GIN has convolutions."""

  def convolution(self, i: int, fan_in: int, fan_out: int, axis: str, rngs) -> Convolution:
    """Returns the i-th convolution [fan_in,fan_out]."""
    return Convolution(graphs.Network(
        fan_in, fan_out, width=self.width, num_layers=self.num_layers, dropout_rate=self.dropout_rate,
        batch_norm=self.batch_norm, name=f'{self.name}.mlp_{i}', rngs=rngs))
