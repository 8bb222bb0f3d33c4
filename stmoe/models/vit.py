"""The Vision Transformer: patches, a bidirectional stack of any feed-forward layers, one label."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import ranges
from stmoe.attention import attention
from stmoe.core import choices
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.parts import linear
from stmoe.parts import norm
from stmoe.parts.pictures import patches
from stmoe.parts.pictures import positions
from stmoe.parts import stack
from stmoe.parts import visible

# What the head reads of the sequence [B,T,D]: its first token, or the mean of all.
POOLING = {'token': lambda x: x[:, :1], 'mean': lambda x: jnp.mean(x, axis=1, keepdims=True)}


class ViT(nnx.Module):
  """ViT (arXiv:2010.11929) with the head and the initial values of V-MoE (arXiv:2106.05974).

  Pre-norm blocks with LayerNorm and biased attention; feed-forward layers have biases if
  their recipes say so. A V-MoE is dense and sparse layers in the pattern. (('dm', 6),) makes every
  second of twelve sparse; (('d', 4), ('dm', 2)) the last two odd layers of eight.

  Args:
    vocab_size, d_model: V, the number of labels, and D.
    layers:       pattern of the stack.
    blocks:       mapping letter -> feed-forward layer (see `stack.Stack`).
    num_heads, head_dim: of the attention.
    image_size, patch_size, channels: of the square images; see `patches.Patches`. `stmoe finetune` resizes
      the positions of a start with another image_size.
    pooling:      'token': a class token, initially 0, comes first and is what the head reads;
      'mean': there is no class token, and the head reads the mean of all tokens.
    representation: width of a tanh layer before the head; 0 = none.
    head_bias:    initial bias of the head, whose matrix is initially 0.
    epsilon:      of the norms.
    dropout_rate: after embedding, sub-layers and final norm, and on attention.
    init_scale:   variance scale of the attention; layers have their own.
    dtype:        of activations; parameters, norms, routers and logits are float32.
    scan_layers, remat: see `stack.Stack`.
  """

  targets = 'labels'               # what is predicted is one of V classes of the whole image

  def __init__(self, *, vocab_size: ranges.Count, d_model: ranges.Count, layers: ranges.Pattern, blocks,
               num_heads: ranges.Count, head_dim: ranges.Count, image_size: ranges.Count,
               patch_size: ranges.Count, channels: ranges.Count = 3,
               pooling: ranges.Choice(*POOLING) = 'token', representation: ranges.Natural = 0,
               head_bias: ranges.Any = 0.0, epsilon: ranges.PartOf1 = 1e-6,
               dropout_rate: ranges.Below1 = 0.0, init_scale: ranges.Positive = 1.0,
               dtype: ranges.Dtype = 'float32', scan_layers: ranges.Flag = True,
               remat: ranges.Choice(*kept.POLICIES) = 'elementwise', rngs):
    choices.named(POOLING, pooling, 'model.pooling')
    self.patches = patches.Patches(d_model, image_size=image_size, patch_size=patch_size, channels=channels,
                                   rngs=rngs)
    zeros = nnx.initializers.zeros
    self.token = axes.param(zeros, (d_model,), 'embed', rngs=rngs) if pooling == 'token' else None
    self.length = self.patches.rows_per_sequence + (pooling == 'token')
    self.positions = axes.param(nnx.initializers.normal(0.02), (1, self.length, d_model), 'unmodeled',
                                'length', 'embed', rngs=rngs)
    attend = functools.partial(attention.Attention, num_heads=num_heads, head_dim=head_dim, use_bias=True,
                               dropout_rate=dropout_rate, init_scale=init_scale)
    self.encoder = stack.Stack(
        d_model, name='encoder', pattern=layers, blocks=blocks, attention=attend,
        norm=functools.partial(norm.LayerNorm, epsilon=epsilon), dropout_rate=dropout_rate,
        scan_layers=scan_layers, remat=remat, rngs=rngs)
    self.representation = Linear(d_model, representation, 'mlp', rngs=rngs) if representation else None
    self.head = Linear(representation or d_model, vocab_size, 'vocab', init=zeros, bias=head_bias, rngs=rngs)
    self.pooling = pooling
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0,
               tokens: dict[str, jax.Array] | None = None) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (logits f32[B,1,V], aux: dict layer name -> Aux).

    Args:
      batch:  image f32[B,H,W,C], and weights i32[B,1]: 0 for rows that hold no image.
      key:    PRNG key, or None for no randomness.
      train:  training capacities and dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
    """
    tokens = self.count_tokens(batch) if tokens is None else tokens
    x = self.patches(batch['image'], self.dtype)                     # [B, N, D]
    if self.token is not None:
      first = jnp.broadcast_to(self.token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
      x = jnp.concatenate([first, x], axis=1)                        # [B, T, D]
    x = x + self.positions[...].astype(x.dtype)
    mask = jnp.broadcast_to(batch['weights'] > 0, x.shape[:2])        # [B, T]
    ctx = contract.Context(**contract.numbered(mask), key=key, step=jnp.asarray(step), train=train,
                           tokens=tokens['encoder'], given=contract.given(batch, 'encoder'))
    seen = visible.Visible(mask=visible.same_segment(ctx.segments, ctx.segments))
    x, aux = self.encoder(x, ctx.fold('encoder').replace(visible=dict(attention=seen)))
    with jax.named_scope('head'):
      x = POOLING[self.pooling](x).astype(jnp.float32)                           # [B, 1, D]
      if self.representation is not None:
        x = jnp.tanh(self.representation(x))
      return self.head(x), aux                                       # [B, 1, V]

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the real tokens of the stack in `batch`: dict(encoder=f32[])."""
    return {'encoder': self.length * jnp.sum(batch['weights'] > 0, dtype=jnp.float32)}

  def refit(self, name: str, x: jax.Array) -> jax.Array | None:
    """Returns array `name` of a model of another image_size as this model has it; None where it cannot be.

    Positions are interpolated, see `positions.resized`.
    """
    return positions.resized(x, self.length, int(self.token is not None)) if name == 'positions' else None

  def stacks(self) -> list[stack.Stack]:
    """Returns the list of the model's stacks."""
    return [self.encoder]


class Linear(nnx.Module):
  """x w + b in float32, w [D,F] with second axis `name`, b [F] initially `bias`."""

  def __init__(self, d_model: int, width: int, name: str, *, init=None, bias=0.0, rngs):
    init = init or nnx.initializers.lecun_normal()
    self.w = axes.param(init, (d_model, width), 'embed', name, rngs=rngs)
    self.b = axes.param(nnx.initializers.constant(bias), (width,), name, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns f32[...,F] for x [...,D]."""
    return linear.apply(x.astype(jnp.float32), self.w, self.b)
