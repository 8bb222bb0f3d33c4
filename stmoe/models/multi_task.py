"""Several answers of every row of a table: columns, a mixture of experts for all tasks, a tower for each."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts.tasks import tower as towers


class MultiTask(nnx.Module):
  """Features and the vectors of ids side by side [B,D], a mixer that gives every task a state [B,H], towers.

  Args:
    num_features: of a row, 0 = none.
    num_ids, num_columns, embed_dim: of all categories together, of categories of a row, width of their
      vectors; 0 = none.
    num_outputs:  K, the tasks.
    d_model:      H.
    tower:        widths of the hidden layers of a task's tower, with ReLU.
    mixer:        module of stmoe/mixers.
  """

  targets = ('values',)

  def __init__(self, *, num_features: ranges.Natural = 0, num_ids: ranges.Natural = 0,
               num_columns: ranges.Natural = 0, embed_dim: ranges.Count = 16, num_outputs: ranges.Count = 2,
               d_model: ranges.Count, tower: ranges.Many(ranges.Count) = (), mixer: ranges.Named('mixer'),
               blocks=None, rngs):
    if bool(num_ids) != bool(num_columns) or not num_features + num_ids:
      raise UserError(f'model.num_features={num_features}, model.num_ids={num_ids}, model.num_columns='
                      f'{num_columns}: there are features, or ids in columns; nearest: model.num_columns='
                      f'{1 if num_ids else 0}, model.num_features={max(num_features, 1)}')
    width = num_features + num_columns * embed_dim
    init = nnx.initializers.normal(0.01)
    self.table = axes.param(init, (num_ids, embed_dim), 'vocab', 'embed', rngs=rngs) if num_ids else None
    self.mixer = mixer(width, d_model, num_outputs, rngs=rngs)
    self.head = nnx.List([towers.Tower((d_model, *tower, 1), rngs=rngs) for _ in range(num_outputs)])
    self.num_features, self.num_columns = num_features, num_columns

  def __call__(self, batch: dict, key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None) -> tuple:
    """Returns (logits f32[B,K], aux: dict layer name -> Aux).

    Args:
      batch:  features f32[B,F], ids i32[B,C], weights [B,K]; rows without any weight are padding.
      key, train, step: PRNG key or None, whether this is training, i32[] optimizer step.
      tokens: dict of `count_tokens`; None = of this batch.
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    mask = jnp.any(batch['weights'] > 0, axis=1, keepdims=True)      # [B, 1]
    ctx = contract.Context(**contract.numbered(mask), key=key, step=jnp.asarray(step), train=train,
                           tokens=tokens['decoder'], given=contract.given(batch, 'decoder'))
    h, aux = self.mixer(self.read(batch), ctx)                       # [B, K, H]
    with jax.named_scope('head'):
      return jnp.concatenate([tower(h[:, t]) for t, tower in enumerate(self.head)], axis=1), aux

  def read(self, batch: dict) -> jax.Array:
    """Returns [B,D] of a batch; raises UserError where the data have other columns than the model."""
    found = dict(num_features=batch['features'].shape[-1] if 'features' in batch else 0,
                 num_columns=batch['ids'].shape[-1] if 'ids' in batch else 0)
    for field, number in found.items():
      if number != getattr(self, field):
        raise UserError(f'model.{field}={getattr(self, field)}, and the data have {number}; nearest: '
                        f'model.{field}={number}')
    parts = [batch['features']] if self.num_features else []
    if self.table is not None:
      parts.append(self.table[...][batch['ids']].reshape(len(batch['ids']), -1))
    return jnp.concatenate(parts, axis=1)

  def count_tokens(self, batch: dict) -> dict:
    """Returns the real rows of `batch`: dict(decoder=f32[])."""
    return {'decoder': jnp.sum(jnp.any(batch['weights'] > 0, axis=1), dtype=jnp.float32)}

  def stacks(self) -> list:
    """Returns the list of the model's stacks."""
    return [self.mixer]
