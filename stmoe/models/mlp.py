"""A network over features, such as the columns of a table: a stack of any feed-forward layers, n numbers."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import norm
from stmoe.parts import stack


class Mlp(nnx.Module):
  """Features F -> D, a pre-norm stack without attention, D -> n numbers, both ends with a bias.

  A row is one token, or K tokens where it holds K items; a token sees others only in routing.

  Args:
    num_features: F; num_outputs: n, of a token.
    d_model:      D.
    layers:       pattern of the stack, for example (('dm', 2),).
    blocks:       mapping letter -> layer (see `stack.Stack`).
    dropout_rate: after the features, layers and final norm.
    dtype:        of activations; parameters, norms, routers and outputs are float32.
    scan_layers, remat: see `stack.Stack`.
  """

  targets = 'values'               # what is predicted are numbers

  def __init__(self, *, num_features: ranges.Count, num_outputs: ranges.Count = 1, d_model: ranges.Count,
               layers: ranges.Pattern, blocks, dropout_rate: ranges.Below1 = 0.0,
               dtype: ranges.Dtype = 'float32', scan_layers: ranges.Flag = True,
               remat: ranges.Choice(*stack.REMAT) = 'none', rngs):
    self.features = Linear(num_features, d_model, ('unmodeled', 'embed'), rngs=rngs)
    self.encoder = stack.Stack(d_model, name='encoder', pattern=layers, blocks=blocks, norm=norm.LayerNorm,
                               dropout_rate=dropout_rate, scan_layers=scan_layers, remat=remat, rngs=rngs)
    self.head = Linear(d_model, num_outputs, ('embed', 'unmodeled'), rngs=rngs)
    self.num_features = num_features
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch, key=None, train=False, step=0, tokens=None):
    """Returns (f32[B,n], or of rows of K items f32[B,K n]; aux: dict layer name -> Aux).

    Args:
      batch:  features f32[B,F] or f32[B,K,F], and weights [B,n] or [B,K n]: tokens without any are padding.
      key:    PRNG key, or None for no randomness.
      train:  training capacities and dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
    """
    x = batch['features']
    if x.shape[-1] != self.num_features:
      raise UserError(f'model.num_features={self.num_features}, and the data have {x.shape[-1]}; nearest: '
                      f'model.num_features={x.shape[-1]}')
    tokens = self.count_tokens(batch) if tokens is None else tokens
    mask = self.real(batch)                                          # [B, K]
    ctx = contract.Context(**contract.numbered(mask), key=key, step=jnp.asarray(step), train=train,
                           tokens=tokens['encoder'], given=contract.given(batch, 'encoder'))
    x = self.features(x.reshape(*mask.shape, -1)).astype(self.dtype)               # [B, K, D]
    x, aux = self.encoder(x, ctx.fold('encoder'))
    with jax.named_scope('head'):
      return self.head(x).reshape(len(x), -1), aux                   # [B, K n]

  def real(self, batch):
    """Returns bool[B,K], the tokens of a batch that have a weight."""
    x = batch['features']
    items = 1 if x.ndim == 2 else x.shape[1]
    return jnp.any(batch['weights'].reshape(len(x), items, -1) > 0, axis=-1)

  def count_tokens(self, batch):
    """Returns the real tokens of the stack in `batch`: dict(encoder=f32[])."""
    return {'encoder': jnp.sum(self.real(batch), dtype=jnp.float32)}

  def stacks(self):
    """Returns the list of the model's stacks."""
    return [self.encoder]


class Linear(nnx.Module):
  """x w + b in float32, w [D,F] with axes `names`, b [F] initially 0."""

  def __init__(self, width_in, width, names, *, rngs):
    self.w = axes.param(nnx.initializers.lecun_normal(), (width_in, width), *names, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (width,), names[-1], rngs=rngs)

  def __call__(self, x):
    """Returns f32[...,F] for x [...,D]."""
    return x.astype(jnp.float32) @ self.w[...] + self.b[...]
