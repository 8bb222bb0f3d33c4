"""An image for an image: convolutions, a stack over patches, convolutions back to pixels."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.attention import attention
from stmoe.core import contract
from stmoe.core.units import kept
from stmoe.models import vit
from stmoe.parts.pictures import conv
from stmoe.parts import norm
from stmoe.parts.pictures import patches
from stmoe.parts import stack
from stmoe.parts import visible


class Restorer(nnx.Module):
  """The network around MoFME's blocks (arXiv:2312.16610): pre-norm blocks without position vectors.

  Head: conv C -> stem, two residual blocks of convolutions, patches with a norm. Tail: a matrix from D to the
  pixels of a patch with `tail` channels, a residual block, conv to tail / 2, a residual block, conv to C,
  sigmoid. There is no norm after the last block. Attention has a bias at its output alone.

  Args:
    d_model:      D.
    layers:       pattern of the stack.
    blocks:       mapping letter -> feed-forward layer (see `stack.Stack`).
    num_heads, head_dim: of the attention.
    image_size, patch_size, channels: of the square images; see `patches.Patches`.
    stem, tail:   channels of the head, and of the tail's first half.
    epsilon:      of the norms.
    dropout_rate: after sub-layers, one mask per image.
    init_scale:   variance scale of the attention; layers have their own.
    dtype:        of activations; parameters, norms, routers and the tail's output are float32.
    scan_layers, remat: see `stack.Stack`.
  Differs: where the paper's script has one (heads = 1 of width D), the output projection is never left out.
  """

  targets = 'pixels'               # what is predicted is an image

  def __init__(self, *, d_model: ranges.Count, layers: ranges.Pattern, blocks, num_heads: ranges.Count,
               head_dim: ranges.Count, image_size: ranges.Count, patch_size: ranges.Count,
               channels: ranges.Count = 3, stem: ranges.Count = 32, tail: ranges.Count = 128,
               epsilon: ranges.PartOf1 = 1e-5, dropout_rate: ranges.Below1 = 0.0,
               init_scale: ranges.Positive = 1.0, dtype: ranges.Dtype = 'float32',
               scan_layers: ranges.Flag = True, remat: ranges.Choice(*kept.POLICIES) = 'elementwise', rngs):
    self.patches = patches.Patches(d_model, image_size=image_size, patch_size=patch_size, channels=stem,
                                   rngs=rngs)
    make = functools.partial(conv.Conv, pixels=image_size ** 2, rngs=rngs)
    residual = functools.partial(conv.Residual, pixels=image_size ** 2, rngs=rngs)
    self.stem, self.stem_blocks = make(channels, stem), nnx.List([residual(stem), residual(stem)])
    self.patch_norm = norm.LayerNorm(d_model, epsilon=epsilon, rngs=rngs)
    attend = functools.partial(attention.Attention, num_heads=num_heads, head_dim=head_dim, out_bias=True,
                               init_scale=init_scale)
    self.encoder = stack.Stack(
        d_model, name='encoder', pattern=layers, blocks=blocks, attention=attend,
        norm=functools.partial(norm.LayerNorm, epsilon=epsilon), dropout_rate=dropout_rate,
        scan_layers=scan_layers, remat=remat, rngs=rngs)
    self.encoder.norm = None                                         # blocks end in the residual stream
    outward: typing.Any = vit.Linear(d_model, patch_size ** 2 * tail, 'mlp', rngs=rngs)
    outward.rows_per_sequence = self.patches.rows_per_sequence
    self.outward = outward
    self.tail = nnx.List([residual(tail), make(tail, tail // 2), residual(tail // 2),
                          make(tail // 2, channels)])
    self.shape = (image_size, image_size, channels)
    self.patch_size = patch_size
    self.dtype = jnp.dtype(dtype)

  def __call__(self, batch: dict[str, jax.Array], key: jax.Array | None = None, train: bool = False,
               step: int | jax.Array = 0,
               tokens: dict[str, jax.Array] | None = None) -> tuple[jax.Array, dict[str, contract.Aux]]:
    """Returns (images f32[B,H,W,C] from 0 to 1, aux: dict layer name -> Aux).

    Args:
      batch:  image f32[B,H,W,C], and weights i32[B,1]: 0 for rows that hold no image.
      key:    PRNG key, or None for no randomness.
      train:  training capacities and dropout.
      step:   i32[] optimizer step, for schedules.
      tokens: dict of `count_tokens`: divisor of the router losses; None = of this batch.
    """
    patches.check(batch['image'], self.shape)
    tokens = self.count_tokens(batch) if tokens is None else tokens
    x = self.stem(batch['image'].astype(self.dtype))                 # [B, H, W, stem]
    for block in self.stem_blocks:
      x = block(x)
    x = self.patch_norm(self.patches(x, self.dtype))                 # [B, N, D]
    mask = jnp.broadcast_to(batch['weights'] > 0, x.shape[:2])       # [B, N]
    ctx = contract.Context(**contract.numbered(mask), key=key, step=jnp.asarray(step), train=train,
                           tokens=tokens['encoder'], given=contract.given(batch, 'encoder'))
    seen = visible.Visible(mask=visible.same_segment(ctx.segments, ctx.segments))
    x, aux = self.encoder(x, ctx.fold('encoder').replace(visible=dict(attention=seen)))
    with jax.named_scope('tail'):
      x = conv.unpatched(self.outward(x), self.shape[0], self.patch_size)          # [B, H, W, tail]
      for part in self.tail:
        x = part(x)
      return jax.nn.sigmoid(x), aux                                  # [B, H, W, C]

  def count_tokens(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the real tokens of the stack in `batch`: dict(encoder=f32[])."""
    return {'encoder': self.patches.rows_per_sequence * jnp.sum(batch['weights'] > 0, dtype=jnp.float32)}

  def stacks(self) -> list[stack.Stack]:
    """Returns the list of the model's stacks."""
    return [self.encoder]
