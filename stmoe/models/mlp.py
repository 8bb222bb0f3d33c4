"""A network over the columns of a table: a stack of any feed-forward layers, and n numbers."""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.errors import UserError
from stmoe.parts import embed
from stmoe.parts import norm
from stmoe.parts import stack


class Mlp(nnx.Module):
  """Features F -> D, a pre-norm stack without attention, D -> n numbers, both ends with a bias.

  A row is one token, or K tokens where it holds K items; a token meets other tokens only in routing. The
  vectors of a row's ids are added to its features.

  Args:
    num_features: F, 0 = none.
    num_ids: of all categories together, 0 = none.
    num_outputs:  n, of a token.
    d_model:      D.
    layers:       pattern of the stack, for example (('dm', 2),).
    blocks:       mapping letter -> layer (see `stack.Stack`).
    dropout_rate: after the features, layers and final norm.
    dtype:        of activations; parameters, norms, routers and outputs are float32.
    scan_layers, remat: see `stack.Stack`.
  """

  targets = ('values', 'labels')   # what is predicted are numbers, which may be logits of classes

  def __init__(self, *, num_features: ranges.Natural = 0, num_ids: ranges.Natural = 0,
               num_outputs: ranges.Count = 1, d_model: ranges.Count, layers: ranges.Pattern, blocks,
               dropout_rate: ranges.Below1 = 0.0, dtype: ranges.Dtype = 'float32',
               scan_layers: ranges.Flag = True, remat: ranges.Choice(*kept.POLICIES) = 'elementwise', rngs):
    if not num_features + num_ids:
      raise UserError('model.num_features=0 and model.num_ids=0: there is nothing to predict from')
    self.features = Linear(num_features, d_model, ('unmodeled', 'embed'), rngs=rngs) if num_features else None
    self.embed = embed.Embed(num_ids, d_model, rngs=rngs) if num_ids else None
    self.encoder = stack.Stack(d_model, name='encoder', pattern=layers, blocks=blocks, norm=norm.LayerNorm,
                               dropout_rate=dropout_rate, scan_layers=scan_layers, remat=remat, rngs=rngs)
    self.head = Linear(d_model, num_outputs, ('embed', 'unmodeled'), rngs=rngs)
    self.num_features = num_features
    self.num_ids = num_ids
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch: dict, key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0, tokens: dict[str, jax.Array] | None = None) -> tuple:
    """Returns (f32[B,n], or of rows of K items f32[B,K n]; aux: dict layer name -> Aux).

    Args:
      batch:  features f32[B,F] or f32[B,K,F], ids i32[B,C], and weights [B,n] or [B,K n]; tokens without
        any weight are padding. With a class as label, the weights are [B,1].
      key:    PRNG key, or None for no randomness.
      train:  training capacities and dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    mask = self.real(batch)                                          # [B, K]
    ctx = contract.Context(**contract.numbered(mask), key=key, step=jnp.asarray(step), train=train,
                           tokens=tokens['encoder'], given=contract.given(batch, 'encoder'))
    x, aux = self.encoder(self.read(batch, mask.shape).astype(self.dtype), ctx.fold('encoder'))
    with jax.named_scope('head'):
      return self.head(x).reshape(len(x), -1), aux                   # [B, K n]

  def read(self, batch: dict, shape: tuple) -> jax.Array:
    """Returns f32[B,K,D] of what a batch has to predict from; `shape` is [B,K].

    Raises UserError where the data have another number of features than the model, or unknown ids.
    """
    num_given = batch['features'].shape[-1] if 'features' in batch else 0
    if num_given != self.num_features:
      raise UserError(f'model.num_features={self.num_features}, and the data have {num_given}; nearest: '
                      f'model.num_features={num_given}')
    if ('ids' in batch) != bool(self.num_ids):
      raise UserError(f'model.num_ids={self.num_ids}, and the data have {"" if "ids" in batch else "no "}ids '
                      'of categories; nearest: model.num_ids=data.num_ids')
    x: typing.Any = 0.0 if self.features is None else self.features(batch['features'].reshape(*shape, -1))
    return x if self.embed is None else x + jnp.sum(self.embed(batch['ids']), axis=1, keepdims=True)

  def real(self, batch: dict) -> jax.Array:
    """Returns bool[B,K], the tokens of a batch that have a weight."""
    x, weights = batch.get('features'), batch['weights']
    items = 1 if x is None or x.ndim == 2 else x.shape[1]
    return jnp.any(weights.reshape(len(weights), items, -1) > 0, axis=-1)

  def count_tokens(self, batch: dict) -> dict:
    """Returns the real tokens of the stack in `batch`: dict(encoder=f32[])."""
    return {'encoder': jnp.sum(self.real(batch), dtype=jnp.float32)}

  def stacks(self) -> list:
    """Returns the list of the model's stacks."""
    return [self.encoder]


class Linear(nnx.Module):
  """x w + b in float32, w [D,F] with axes `names`, b [F] initially 0."""

  def __init__(self, width_in: int, width: int, names: tuple[str | None, ...], *, rngs):
    self.w = axes.param(nnx.initializers.lecun_normal(), (width_in, width), *names, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (width,), names[-1], rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns f32[...,F] for x [...,D]."""
    return x.astype(jnp.float32) @ self.w[...] + self.b[...]
