"""A network that sees a node's own features alone."""

from stmoe.parts import graph as graphs


class Mlp(graphs.Network):
  """An MLP of every node, see `graphs.Network`."""
