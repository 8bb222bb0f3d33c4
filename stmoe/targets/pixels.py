"""Pixels: an image for an image, such as a clean one for a degraded one, with its signal-to-noise ratio."""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe import targets
from stmoe.errors import UserError

SHOWN = 12                               # images of a batch that are drawn


class Pixels:
  """Smooth L1 of the outputs [B,H,W,C] against the entry `pixels` f32[B,H,W,C]: the mean over all numbers.

  With d the difference it is d^2 / (2 beta) below beta and |d| - beta / 2 above (arXiv:1504.08083, eq. 3).
  Pixels are from 0 to 1. The peak signal-to-noise ratio of an image is -10 log10 of its mean squared error,
  in decibels; that of a split is the mean over images, of outputs cut off at 0 and 1. The entry `weights`
  [B,1] is 0 for rows without an image.

  Args:
    beta: where the loss becomes linear.
  """

  kinds, passes, run = ('pixels',), 1, ''
  measures = {
      'loss/smooth_l1': targets.Measure('smooth L1'),
      'eval/loss': targets.Measure('smooth L1', said='eval loss {:.5f}'),
      'eval/psnr': targets.Measure('dB', 'higher', '{:.2f} dB'),
  }

  def __init__(self, *, beta: ranges.Positive = 1.0):
    self.beta = beta

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B,1], 1 where a row has an image."""
    return batch['weights'].astype(jnp.float32)

  def counts(self, batch: dict) -> jax.Array:
    """Returns f32[], the images."""
    return targets.divisor(self.weights(batch))

  def loss(self, outputs: jax.Array, batch: dict, counts: jax.Array) -> tuple:
    """Returns (f32[], metrics) for outputs f32[B,H,W,C]; see `targets.Target`."""
    mean = self._smooth(outputs, batch) / counts
    return mean, {'loss/smooth_l1': mean}

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns dict(smooth, ratio), f32[] sums over the images, of outputs f32[B,H,W,C]."""
    error = jnp.mean(jnp.square(jnp.clip(outputs, 0, 1) - batch['pixels']), axis=(1, 2, 3))    # [B]
    ratio = -10 * jnp.log10(jnp.maximum(error, 1e-10))               # 100 dB at most
    return dict(smooth=self._smooth(outputs, batch), ratio=jnp.sum(self.weights(batch)[:, 0] * ratio))

  def pictures(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns the first images [n,H,W,C]: what the model read, what it gave and what it should have given."""
    shown = dict(image=batch['image'], restored=jnp.clip(outputs, 0, 1), pixels=batch['pixels'])
    return {name: array[:SHOWN] for name, array in shown.items()}

  def _smooth(self, outputs, batch):
    """The sum f32[] over the images of the mean of their pixels' loss."""
    if outputs.shape != batch['pixels'].shape:
      raise UserError(f'the model gives images of {list(outputs.shape[1:])}, and the data have '
                      f'{list(batch["pixels"].shape[1:])}; nearest: model.image_size='
                      f'{batch["pixels"].shape[1]}')
    away = jnp.abs(outputs - batch['pixels'])
    each = jnp.where(away < self.beta, 0.5 * away * away / self.beta, away - 0.5 * self.beta)
    return jnp.sum(self.weights(batch)[:, 0] * jnp.mean(each, axis=(1, 2, 3)))

  def metrics(self, totals: dict) -> dict:
    """Returns the mean loss and the mean signal-to-noise ratio."""
    return {'eval/loss': totals['smooth'] / totals['weight'], 'eval/psnr': totals['ratio'] / totals['weight']}
