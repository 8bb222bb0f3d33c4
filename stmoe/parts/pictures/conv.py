"""Convolution of images, channels last."""

import typing

from flax import nnx
import jax

from stmoe import axes


def convolved(x: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
  """Returns [B,H',W',F], images x [B,H,W,C] convolved with w [k,k,C,F], in the dtype of x.

  (k - 1) / 2 zeros are put on each side, whatever the stride is.
  """
  around = (w.shape[0] - 1) // 2
  return jax.lax.conv_general_dilated(x, w.astype(x.dtype), (stride, stride), [(around, around)] * 2,
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


class Conv(nnx.Module):
  """A convolution with w [k,k,C,F], and a bias [F] where it is used.

  Args:
    channels, width: C and F.
    size:     k, an odd number.
    stride:   steps of the window.
    pixels:   H' W' of what comes out, by which operations are counted.
    use_bias: with a bias, initially 0.
    init:     initialiser of w.
  """

  def __init__(self, channels: int, width: int, *, pixels, size=3, stride=1, use_bias=True,
               init: typing.Callable[..., jax.Array] | None = None, rngs):
    init = init or nnx.initializers.lecun_normal()
    names = ('unmodeled',) * 4
    self.w = axes.param(init, (size, size, channels, width), *names, rngs=rngs)
    self.b = axes.param(nnx.initializers.zeros, (width,), 'unmodeled', rngs=rngs) if use_bias else None
    self.stride = stride
    self.rows_per_sequence = pixels
    self.products_per_row = size * size * channels * width

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [B,H',W',F] for x [B,H,W,C]."""
    y = convolved(x, self.w[...], self.stride)
    return y if self.b is None else y + self.b[...].astype(y.dtype)


class Residual(nnx.Module):
  """x + conv(relu(conv(x))) of images [B,H,W,C], two convolutions of size 3 with biases."""

  def __init__(self, channels: int, *, pixels, rngs):
    self.first, self.second = (Conv(channels, channels, pixels=pixels, rngs=rngs) for _ in range(2))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [B,H,W,C] for x [B,H,W,C]."""
    return x + self.second(jax.nn.relu(self.first(x)))


def unpatched(x: jax.Array, side: int, patch_size: int) -> jax.Array:
  """Returns images [B,side,side,C] of patches [B,N,P*P*C]: rows of patches from the top, each from the left.

  >>> import jax.numpy as jnp
  >>> unpatched(jnp.arange(16.0).reshape(1, 4, 4), 4, 2)[0, 0, :, 0].tolist()
  [0.0, 1.0, 4.0, 5.0]
  """
  across = side // patch_size
  x = x.reshape(len(x), across, across, patch_size, patch_size, -1).swapaxes(2, 3)
  return x.reshape(len(x), side, side, -1)
