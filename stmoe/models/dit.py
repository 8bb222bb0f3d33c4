"""The Diffusion Transformer: what noise did to an image, from its time and class (arXiv:2212.09748)."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import modules
from stmoe import ranges
from stmoe.attention import attention
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.errors import UserError
from stmoe.parts import linear
from stmoe.parts import norm
from stmoe.parts.pictures import patches
from stmoe.parts import sinusoids
from stmoe.parts import stack
from stmoe.parts import visible
from stmoe.parts.around import ada_ln_zero
from stmoe.parts.around import switch_dit

FEATURES = 256                           # sinusoids of a time


class Dit(nnx.Module):
  """DiT: patches, fixed places, a bidirectional stack, a linear head (arXiv:2212.09748).

  Blocks stand in `ada_ln_zero` unless they say `around`. The condition of a row is the embedding of its time
  plus that of its class; -1 is no class. Routers and blocks read what is given of rows: `time` [B,1],
  `time_embedding` and `condition` [B,1,D], `label` [B,1].

  Args:
    vocab_size: V, the number of classes; 0 = the model knows no classes.
    d_model:    D, a multiple of 4.
    layers:     pattern of the stack.
    blocks:     mapping letter -> feed-forward layer (see `stack.Stack`).
    num_heads, head_dim: of the attention.
    image_size, patch_size, channels: of the square images; see `patches.Patches`.
    variance:   whether there are C more outputs of a pixel: for the variance of DDPM (arXiv:2102.09672).
    epsilon:    of the norms, which have no learned vectors.
    dropout_rate: after embedding, sub-layers and final norm, and on attention.
    init_scale: variance scale of the attention; layers have their own.
    dtype:      of activations; parameters, norms, routers and outputs are float32.
    scan_layers, remat: see `stack.Stack`.
  Differs: matrices of attention and layers start N(0, s / fan-in), in the released code Xavier-uniform.
  """

  targets = 'noise'                # what is predicted: what noise did to an image

  def __init__(self, *, vocab_size: ranges.Natural = 0, d_model: ranges.Count, layers: ranges.Pattern, blocks,
               num_heads: ranges.Count, head_dim: ranges.Count, image_size: ranges.Count,
               patch_size: ranges.Count, channels: ranges.Count = 3, variance: ranges.Flag = True,
               epsilon: ranges.PartOf1 = 1e-6, dropout_rate: ranges.Below1 = 0.0,
               init_scale: ranges.Positive = 1.0, dtype: ranges.Dtype = 'float32',
               scan_layers: ranges.Flag = True, remat: ranges.Choice(*kept.POLICIES) = 'elementwise', rngs):
    if d_model % 4:
      raise UserError(f'model.d_model={d_model}: rows and columns have sines and cosines; nearest: '
                      f'{max(4, d_model // 4 * 4)}, {d_model // 4 * 4 + 4}')
    self.patches = patches.Patches(d_model, image_size=image_size, patch_size=patch_size, channels=channels,
                                   rngs=rngs)
    self.time = TimeEmbedding(d_model, rngs=rngs)
    self.classes = Classes(vocab_size, d_model, rngs=rngs) if vocab_size else None
    attend = functools.partial(attention.Attention, num_heads=num_heads, head_dim=head_dim, use_bias=True,
                               dropout_rate=dropout_rate, init_scale=init_scale)
    around = lambda block: dict(dict(around=dict(name='ada_ln_zero')), **block)
    self.encoder = stack.Stack(
        d_model, name='encoder', pattern=layers,
        blocks={letter: around(block) for letter, block in blocks.items()}, attention=attend,
        norm=functools.partial(norm.Standardized, epsilon=epsilon), dropout_rate=dropout_rate,
        scan_layers=scan_layers, remat=remat, rngs=rngs)
    self.head = Head(d_model, image_size, patch_size, channels * (1 + variance), rngs=rngs)
    self.vocab_size = vocab_size
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0,
               tokens: dict[str, jax.Array] | None = None) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (f32[B,H,W,C], with `variance` f32[B,H,W,2C], aux: dict layer name -> Aux).

    Args:
      batch:  image f32[B,H,W,C], the noisy one; given/time f32[B]; given/label i32[B], from -1; weights
        i32[B,1]: 0 for rows that hold no image; times f32[T], all times that there are, where blocks ask.
      key:    PRNG key, or None for no randomness.
      train:  training capacities and dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    x = self.patches(batch['image'], self.dtype)                     # [B, N, D]
    x = x + sinusoids.grid(self.head.side, x.shape[-1]).astype(x.dtype)
    mask = jnp.broadcast_to(batch['weights'] > 0, x.shape[:2])        # [B, N]
    condition, given = self._given(batch)
    ctx = contract.Context(**contract.numbered(mask), key=key, step=jnp.asarray(step), train=train,
                           tokens=tokens['encoder'], given=given)
    mask = visible.same_segment(ctx.segments, ctx.segments)
    seen: dict[str, typing.Any] = dict(attention=visible.Visible(mask=mask))
    if 'times' in batch:
      seen['times'] = switch_dit.Times(batch['times'], self.time(batch['times']))
    ctx = ctx.fold('encoder').replace(visible=seen)
    x, aux = self.encoder(x, ctx)
    with jax.named_scope('head'):
      return self.head(x.astype(jnp.float32), condition), modules.joint(self.encoder, aux, ctx)

  def _given(self, batch):
    """(condition f32[B,1,D], what routers and blocks know of rows) of a batch."""
    given = contract.given(batch, 'encoder')
    embedding = self.time(given['time'])                             # [B, 1, D]
    condition = embedding if self.classes is None else embedding + self.classes(given['label'])
    return condition, given | {switch_dit.EMBEDDING: embedding, ada_ln_zero.CONDITION: condition}

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the real tokens of the stack in `batch`: dict(encoder=f32[])."""
    return {'encoder': self.patches.rows_per_sequence * jnp.sum(batch['weights'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list[stack.Stack]:
    """Returns the list of the model's stacks."""
    return [self.encoder]


class TimeEmbedding(nnx.Module):
  """W2 SiLU(W1 f(t) + b1) + b2 with f(t) the FEATURES cosines and sines of t; N(0, 0.02^2) at first."""

  rows_per_sequence = 1

  def __init__(self, d_model: int, *, rngs):
    init, zeros = nnx.initializers.normal(0.02), nnx.initializers.zeros
    self.wi = axes.param(init, (FEATURES, d_model), 'unmodeled', 'embed', rngs=rngs)
    self.bi = axes.param(zeros, (d_model,), 'embed', rngs=rngs)
    self.wo = axes.param(init, (d_model, d_model), 'embed', 'mlp', rngs=rngs)
    self.bo = axes.param(zeros, (d_model,), 'mlp', rngs=rngs)

  def __call__(self, time: jax.Array) -> jax.Array:
    """Returns f32[...,D] for times f32[...], which need not be whole numbers."""
    sines, cosines = sinusoids.turning(time, FEATURES)
    h = linear.apply(jnp.concatenate([cosines, sines], axis=-1), self.wi, self.bi)
    return linear.apply(jax.nn.silu(h), self.wo, self.bo)


class Classes(nnx.Module):
  """A table f32[V+1,D] of classes, N(0, 0.02^2); the last row is of images without a class, -1."""

  products_per_row = 0                   # looked up

  def __init__(self, number: int, d_model: int, *, rngs):
    init = nnx.initializers.normal(0.02)
    self.table = axes.param(init, (number + 1, d_model), 'unmodeled', 'embed', rngs=rngs)

  def __call__(self, label: jax.Array) -> jax.Array:
    """Returns f32[...,D] for i32[...] from -1 to V - 1."""
    table = self.table[...]
    return jnp.take(table, jnp.where(label < 0, len(table) - 1, label), axis=0)


class Head(nnx.Module):
  """Pixels of every patch: a linear map of shifted and scaled tokens, zero at first."""

  def __init__(self, d_model: int, image_size: int, patch_size: int, channels: int, *, rngs):
    zeros = nnx.initializers.zeros
    self.modulation = ada_ln_zero.Modulation(d_model, 2, rngs=rngs)
    self.w = axes.param(zeros, (d_model, patch_size ** 2 * channels), 'embed', 'unmodeled', rngs=rngs)
    self.b = axes.param(zeros, (patch_size ** 2 * channels,), 'unmodeled', rngs=rngs)
    self.side, self.patch_size = image_size // patch_size, patch_size
    self.rows_per_sequence = self.side ** 2

  def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
    """Returns f32[B,H,W,C] for x f32[B,N,D], which are normalised, and the condition f32[B,1,D]."""
    parts = self.modulation(condition)                               # [B, 1, 2, D]
    y = linear.apply(ada_ln_zero.shifted(x, parts[:, :, 0], parts[:, :, 1]), self.w, self.b)
    side, size = self.side, self.patch_size
    y = y.reshape(len(y), side, side, size, size, -1).swapaxes(2, 3)  # [B, h, P, w, P, C]
    return y.reshape(len(y), side * size, side * size, -1)
