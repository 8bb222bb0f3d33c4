"""The edges of a graph: sums over the neighbours of nodes, and what a network over nodes is made of."""

import typing

from flax import nnx
from flax import struct
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import contract
from stmoe.core import noise
from stmoe.parts import batch_norm as norms
from stmoe.parts import linear


class Graph(struct.PyTreeNode):
  """The edges of B graphs of N nodes, filled up to M edges each.

  edges:   i32[B,M,2], from node and to node.
  weights: f32[B,M], 1, and 0 where there is no edge.
  """
  edges: jax.Array
  weights: jax.Array

  def neighbours(self, x: jax.Array) -> jax.Array:
    """Returns f32[B,N,D], for every node the sum of x [B,N,D] over the nodes with an edge to the node.

    >>> graph = Graph(jnp.array([[[0, 1], [2, 1], [0, 0]]]), jnp.array([[1.0, 1.0, 0.0]]))
    >>> graph.neighbours(jnp.array([[[1.0], [2.0], [4.0]]])).ravel().tolist()
    [0.0, 5.0, 0.0]
    """
    def of_graph(x, edges, weights):
      return jnp.zeros_like(x).at[edges[:, 1]].add(weights[:, None] * x[edges[:, 0]])
    return jax.vmap(of_graph)(x, self.edges, self.weights)

  def degree(self, nodes: int) -> jax.Array:
    """Returns f32[B,N,1], the number of edges to every one of N nodes."""
    return self.neighbours(jnp.ones((len(self.edges), nodes, 1)))


class Linear(nnx.Module):
  """x w + b of every node; `axis` is the logical name of the outputs."""

  def __init__(self, fan_in: int, fan_out: int, axis: str, *, use_bias: bool = True, rngs):
    init, zeros = nnx.initializers.lecun_normal(), nnx.initializers.zeros
    self.w = axes.param(init, (fan_in, fan_out), 'embed', axis, rngs=rngs)
    self.b = axes.param(zeros, (fan_out,), axis, rngs=rngs) if use_bias else None

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns f32[...,F] for x [...,D]."""
    return linear.apply(x, self.w, self.b)


class Own(nnx.Module):
  """x w + b: what the neighbours of a node say is left out."""

  def __init__(self, fan_in: int, fan_out: int, axis: str, *, rngs):
    self.linear = Linear(fan_in, fan_out, axis, rngs=rngs)

  def __call__(self, x: jax.Array, graph: Graph, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (f32[B,N,D'], {}) for x [B,N,D]."""
    return self.linear(x), {}


def still(convolution: typing.Any) -> typing.Any:
  """Returns a copy of a convolution whose biases `b` have no gradient.

  In training a batch norm subtracts what they add: their gradient is 0. Its rounding, which an optimizer
  such as AdamW makes as large as any gradient, would be another on other devices.
  """
  stopped = lambda path, x: jax.lax.stop_gradient(x) if getattr(path[-2], 'name', '') == 'b' else x
  return jax.tree.map_with_path(stopped, convolution)


class Network(nnx.Module):
  """L convolutions F -> D -> ... -> C of nodes; after all but the last, batch norm, ReLU and dropout.

  A convolution is called with (x [B,N,D], Graph, Context) and returns (y [B,N,D'], dict name -> Statistic). A
  kind of network is a subclass with another method `convolution`.

  Args:
    num_features, num_outputs: F and C.
    width:      D.
    num_layers: L.
    batch_norm: whether there are batch norms.
    name:       of its parameters in section `groups`, and the first part of the names of statistics.
  """

  def __init__(self, num_features: int, num_outputs: int, *, width: int, num_layers: int, dropout_rate: float,
               batch_norm: bool, name: str, rngs):
    widths = [num_features, *[width] * (num_layers - 1), num_outputs]
    self.label = name
    self.name = name
    self.width = width
    self.num_layers = num_layers
    self.dropout_rate = dropout_rate
    self.batch_norm = batch_norm
    named = ['mlp'] * (num_layers - 1) + ['unmodeled']               # C may be no multiple of the devices
    self.convolutions = nnx.List([self.convolution(i, widths[i], widths[i + 1], named[i], rngs)
                                  for i in range(num_layers)])
    # The statistics of a graph are its own: a row's result depends on no other row.
    self.norms = nnx.List([norms.BatchNorm((width,), ('embed',), f'{name}.norm_{i}', group_size=1, rngs=rngs)
                           for i in range(num_layers - 1) if batch_norm])

  def convolution(self, i: int, fan_in: int, fan_out: int, axis: str, rngs) -> nnx.Module:
    """Returns the i-th convolution of nodes, [B,N,fan_in] -> [B,N,fan_out]: here, of every node alone."""
    return Own(fan_in, fan_out, axis, rngs=rngs)

  def __call__(self, x: jax.Array, graph: Graph, ctx: contract.Context) -> tuple[jax.Array, dict]:
    """Returns (logits f32[B,N,C], dict name -> Statistic) for x [B,N,F]."""
    statistics: dict[str, contract.Statistic] = {}
    for i, convolution in enumerate(self.convolutions):
      normed = self.batch_norm and i < self.num_layers - 1
      convolution = still(convolution) if normed and ctx.train else convolution
      x, found = convolution(x, graph, ctx)                          # [B, N, D]
      statistics |= found
      if normed:
        x, found = self.norms[i](x, ctx.train, ctx.mask)
        statistics |= found
      if i < self.num_layers - 1:
        key = ctx.fold(f'{self.name}.dropout_{i}').key if ctx.train else None
        x = noise.dropout(jax.nn.relu(x), self.dropout_rate, key)
    return x, statistics
