"""Patch embedding: an image as a sequence of linear projections of its patches."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import errors
from stmoe.errors import UserError
from stmoe.parts import linear


class Patches(nnx.Module):
  """Non-overlapping patches of P x P pixels times w [P*P*C,D], plus b [D] (ViT, arXiv:2010.11929, eq. 1).

  Args:
    image_size: side of the square images; patch_size: P, a divisor of it.
    channels:   C.
  """

  def __init__(self, d_model: int, *, image_size, patch_size, channels, rngs):
    if image_size % patch_size:
      raise UserError(f'patch_size {patch_size} does not divide image_size {image_size}; nearest: '
                      f'{errors.around(patch_size, errors.divisors(image_size))}')
    init = nnx.initializers.lecun_normal()
    self.w = axes.param(init, (patch_size ** 2 * channels, d_model), 'unmodeled', 'embed', rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (d_model,), 'embed', rngs=rngs)
    self.shape = (image_size, image_size, channels)
    self.patch_size = patch_size
    self.rows_per_sequence = (image_size // patch_size) ** 2

  def __call__(self, images: jax.Array, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
    """Returns [B,N,D] in `dtype` for images [B,H,W,C]: rows of patches from the top, each from the left."""
    check(images, self.shape)
    batch, height, width, channels = images.shape
    size = self.patch_size
    x = images.reshape(batch, height // size, size, width // size, size, channels)
    x = x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)  # [B, N, P*P*C]
    return linear.apply(x.astype(dtype), self.w, self.b)


def check(images: jax.Array, shape: tuple[int, int, int]) -> None:
  """Raises UserError unless there are images [B,H,W,C] that have the model's `shape` (H, W, C)."""
  if not len(images):
    raise UserError('there are no images in the batch; wanted: at least one, which may be padding')
  if images.shape[1:] != shape:
    given, wanted = (' x '.join(map(str, sizes)) for sizes in (images.shape[1:], shape))
    raise UserError(f'images of {given} for a model of {wanted}; set data.image_size={shape[0]} '
                    f'and data.channels={shape[2]}')
