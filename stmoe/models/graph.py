"""A graph network: a class for every node of a graph, by its features and its neighbours'."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import lookup
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import alone
from stmoe.parts import graph as graphs


class Graph(nnx.Module):
  """One network over the nodes of graphs, F features -> C logits.

  Args:
    num_features: F.
    num_outputs: C.
    d_model:      D, the hidden width.
    network:      'mlp', which sees no edges, 'gcn', 'sage' or 'gin' (`parts/networks`).
    num_layers:   convolutions, the last of which gives the logits.
    dropout_rate: after all layers but the last.
    batch_norm:   whether there are batch norms, at the same places.
  State: running means of the batch norms.
  """

  targets = 'labels'                   # a class of every node

  def __init__(self, *, num_features: ranges.Count, num_outputs: ranges.Count, d_model: ranges.Count,
               network: ranges.Called('network') = 'gcn', num_layers: ranges.Count = 2,
               dropout_rate: ranges.Below1 = 0.0, batch_norm: ranges.Flag = True, rngs):
    make = lookup.recipe('network', dict(name=network))
    self.encoder = alone.Alone('encoder', make(
        num_features, num_outputs, width=d_model, num_layers=num_layers, dropout_rate=dropout_rate,
        batch_norm=batch_norm, name='network', rngs=rngs))
    self.num_features = num_features

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None) -> tuple:
    """Returns (logits f32[B,N,C], aux: dict(encoder=Aux)); the load of the one network is its nodes.

    Args:
      batch:  as `data/sources/graphs.py` has it, with a label for every node.
      key:    PRNG key, or None for no randomness.
      train:  dropout, and batch norms of the batch's own statistics.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`.
    """
    x, graph, ctx = read(batch, self.num_features, key, train, step, tokens)
    logits, statistics = self.encoder.network(x, graph, ctx)
    return logits, {'encoder': contract.Aux(losses={}, load=jnp.sum(ctx.mask, dtype=jnp.float32)[None],
                                            metrics={}, statistics=statistics)}

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the nodes in `batch`: dict(encoder=f32[])."""
    return count(batch)

  def stacks(self) -> list:
    """Returns the list of the model's stacks: the network."""
    return [self.encoder]


def count(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns the nodes in a batch of graphs: dict(encoder=f32[])."""
  return {'encoder': jnp.sum(batch['node_weights'] > 0, dtype=jnp.float32)}


def read(batch: dict[str, jax.Array], num_features: int, key: jax.Array | None, train: bool,
         step: int | jax.Array, tokens: dict[str, jax.Array] | None) -> tuple:
  """Returns (features f32[B,N,F], Graph, Context) of a batch; the arguments are those of a model.

  Raises UserError where the data have another number of features, or labels of whole graphs.
  """
  x = batch['features']                                              # [B, N, F]
  if x.shape[-1] != num_features:
    raise UserError(f'model.num_features={num_features}, and the data have {x.shape[-1]}; nearest: '
                    f'model.num_features={x.shape[-1]}')
  if batch['weights'].shape != batch['node_weights'].shape:
    raise UserError('data.nodes=False: labels are of whole graphs, and the model predicts those of nodes; '
                    'nearest: data.nodes=True')
  tokens = count(batch) if tokens is None else tokens
  ctx = contract.Context(**contract.numbered(batch['node_weights'] > 0), key=key, step=jnp.asarray(step),
                         train=train, tokens=tokens['encoder'])
  return x, graphs.Graph(batch['edges'], batch['edge_weights']), ctx.fold('encoder')
