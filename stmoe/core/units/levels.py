"""Noisy images and the level of their noise: what targets of diffusion have in common."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import errors

TENTHS = 10                              # of the levels, each with a mean of its own in evaluation


def table(values: np.ndarray, at: jax.Array) -> jax.Array:
  """Returns f32[B], the entries of a table f64[T] at i32[B]."""
  return jnp.asarray(values, jnp.float32)[at]


def wide(x: jax.Array) -> jax.Array:
  """Returns [B,1,1,1] of x [B], numbers of images."""
  return x[:, None, None, None]


def mean(x: jax.Array) -> jax.Array:
  """Returns f32[B], the mean of images x [B,H,W,C]."""
  return jnp.mean(x, axis=(1, 2, 3))


def weights(batch: dict) -> jax.Array:
  """Returns f32[B] of the entry weights [B,1] of a batch: 0 for a row that holds no image."""
  return batch['weights'][:, 0].astype(jnp.float32)


def check(batch: dict) -> None:
  """Raises UserError unless a batch has noise [B,H,W,C] for its images [B,H,W,C]."""
  if 'noise' not in batch:
    raise errors.UserError("the data have images without noise; nearest: data.source='diffusion'")


def first(outputs: jax.Array, batch: dict) -> jax.Array:
  """Returns [B,H,W,C], the first C numbers of outputs [B,H,W,C'] for a batch whose noise is [B,H,W,C]."""
  return outputs[..., :batch['noise'].shape[-1]]


def parts(outputs: jax.Array, batch: dict, variance: bool) -> tuple[jax.Array, jax.Array | None]:
  """Returns (noise [B,H,W,C], v [B,H,W,C] or None) of outputs; raises UserError for another width.

  Args:
    variance: whether v is wanted, so that outputs are [B,H,W,2C].
  """
  channels = batch['noise'].shape[-1]
  if outputs.shape[-1] != channels * (1 + variance):
    raise errors.UserError(f'loss.variance={variance}, and the model gives {outputs.shape[-1]} numbers for a '
                           f'pixel of {channels}; nearest: model.variance={variance}')
  return first(outputs, batch), outputs[..., channels:] if variance else None


def sums(weights: jax.Array, values: jax.Array, share: jax.Array) -> dict:
  """Returns dict errors, images: f32[TENTHS], weighted sums of values f32[B] by tenth of share f32[B]."""
  tenth = jnp.clip(jnp.floor(share * TENTHS), 0, TENTHS - 1)
  one_hot = weights * (jnp.arange(TENTHS)[:, None] == tenth)         # [TENTHS, B]
  return dict(errors=jnp.sum(one_hot * values, axis=1), images=jnp.sum(one_hot, axis=1))


def metrics(name: str, totals: dict) -> dict:
  """Returns dict NAME_TENTH -> mean of the errors f[TENTHS] of `sums`, of every tenth with an image.

  >>> metrics('mse', dict(errors=[1.0, 0.0], images=[2.0, 0.0]))
  {'mse_0': 0.5}
  """
  pairs = enumerate(zip(totals['errors'], totals['images']))
  return {f'{name}_{tenth}': error / images for tenth, (error, images) in pairs if images}
