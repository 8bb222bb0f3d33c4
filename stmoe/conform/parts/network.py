"""What every network over the nodes of graphs must do: logits of nodes, whatever their order."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.conform import by_itself
from stmoe.conform import generic
from stmoe.core import contract
from stmoe.parts import graph as graphs

CLASSES = 5
# Among nodes that every graph has; the last place holds no edge.
EDGES = np.array([[0, 1], [1, 0], [2, 1], [2, 2], [1, 2]], np.int32)
WEIGHTS = np.array([1, 1, 1, 1, 0], np.float32)


@generic.cached
def _build(name, **fields):
  own = dict(width=6, num_layers=2, dropout_rate=0.1, batch_norm=False, name='network') | fields
  make = lookup.recipe('network', dict(name=name))
  return make(by_itself.D, CLASSES, **own, rngs=nnx.Rngs(0))


def _run(network, x, mask, edges=EDGES, **fields):
  ctx = contract.Context(**contract.numbered(mask), step=jnp.int32(0),
                         tokens=jnp.sum(mask, dtype=jnp.float32), **fields)
  each = lambda a: jnp.broadcast_to(jnp.asarray(a), (len(x), *a.shape))
  y, statistics = network(x, graphs.Graph(each(edges), each(WEIGHTS)), ctx)
  return y, contract.Aux(losses={}, load=jnp.zeros(0), metrics={}, statistics=statistics), True


_NETWORK = by_itself.Kind(__name__, _build, _run)


@functools.partial(jax.jit, static_argnums=3)
def _logits(network, x, edges, train=False):
  key = jax.random.key(0) if train else None
  y, aux, _ = _run(network, x, jnp.asarray(by_itself.MASK), edges, key=key, given={}, train=train)
  return y, aux.statistics


def answers(name: str, **fields) -> None:
  """It returns (logits f32[B,N,C], dict name -> Statistic), in evaluation and in training."""
  wanted = (by_itself.B, by_itself.T, CLASSES)
  for normed in (False, True):
    network = _build(name, **dict(batch_norm=normed) | fields)
    for train in (False, True):
      y, statistics = _logits(network, by_itself.X, EDGES, train)
      assert y.shape == wanted and y.dtype == jnp.float32, (
          f'logits are {y.dtype}{list(y.shape)}; wanted: float32{list(wanted)}')
      wrong = [key for key, value in statistics.items() if not isinstance(value, contract.Statistic)]
      assert not wrong, f'{wrong[0]} is a {type(statistics[wrong[0]]).__name__}; wanted: Statistic'


def order_changes_nothing(name: str, **fields) -> None:
  """Nodes in another order, with their edges, have the same logits; so have edges in another order."""
  network = _build(name, **fields)
  order = np.array([2, 0, 1, *range(3, by_itself.T)])                # place of a node -> the node there
  y, _ = _logits(network, by_itself.X, EDGES)
  z, _ = _logits(network, by_itself.X[:, order], np.argsort(order)[EDGES].astype(np.int32))
  np.testing.assert_allclose(z, y[:, order], rtol=1e-5, atol=1e-6)
  turned, _ = _logits(network, by_itself.X, EDGES[[3, 1, 0, 2, 4]])
  np.testing.assert_allclose(turned, y, rtol=1e-5, atol=1e-6)


def no_edge_changes_nothing(name: str, **fields) -> None:
  """What stands at a place of weight 0 is no edge."""
  network = _build(name, **fields)
  other = np.where(WEIGHTS[:, None] > 0, EDGES, [0, 2]).astype(np.int32)
  np.testing.assert_array_equal(*(_logits(network, by_itself.X, edges)[0] for edges in (EDGES, other)))


(padding_changes_nothing, every_parameter_has_a_gradient, rows_do_not_meet,
 evaluation_draws_nothing) = by_itself.checks(_NETWORK)
