"""Flow matching: the straight way from an image to noise, and its velocity (arXiv:2209.03003)."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe import targets
from stmoe.core.units import levels

SCALE = 1000.0                           # of the time that the model is told
TIMES = 1000                             # levels, where a model asks for all of them


class Flow:
  """The squared error of the velocity: x = (1 - s) image + s noise, v = noise - image.

  A batch has image, noise [B,H,W,C] and given/time f32[B], the share s of noise; the model is told 1000 s.
  The velocity is the first C outputs of a pixel. A model that has as many more trains them by nothing
  (ProMoE, arXiv:2510.24711).

  Args:
    bound: sampling cuts the final image to +-bound; None = not.
  """

  kinds, passes, run = ('noise',), 1, ''
  samplers = ('euler',)
  measures = {
      'loss/mse': targets.Measure('squared error'),
      'eval/loss': targets.Measure('squared error', said='eval loss {:.4f}'),
  }

  def __init__(self, *, bound: ranges.Positive | None = None):
    self.bound = bound

  times = np.linspace(0, SCALE, TIMES)   # levels as the model is told them

  def posed(self, batch: dict) -> dict:
    """Returns a batch as the model has it; see `targets.Target`."""
    levels.check(batch)
    share = levels.wide(batch['given/time'])
    noisy = (1 - share) * batch['image'] + share * batch['noise']
    return dict(batch, image=noisy, times=jnp.asarray(self.times, jnp.float32)) | {
        'given/time': SCALE * batch['given/time']}

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B]."""
    return levels.weights(batch)

  def counts(self, batch: dict) -> jax.Array:
    """Returns f32[], the number of images."""
    return targets.divisor(self.weights(batch))

  def each(self, outputs: jax.Array, batch: dict) -> jax.Array:
    """Returns the squared errors f32[B] of outputs f32[B,H,W,C or 2C]."""
    velocity = levels.first(outputs, batch)
    return levels.mean(jnp.square(velocity - (batch['noise'] - batch['image'])))

  def loss(self, outputs: jax.Array, batch: dict, counts: jax.Array) -> tuple:
    """Returns (f32[], metrics) for outputs f32[B,H,W,C or 2C]; see `targets.Target`."""
    error = jnp.sum(self.weights(batch) * self.each(outputs, batch)) / counts
    return error, {'loss/mse': error}

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns dict of sums: error f32[]; and by level f32[10]: errors, images."""
    error, weights = self.each(outputs, batch), self.weights(batch)
    return dict(error=jnp.sum(weights * error)) | levels.sums(weights, error, batch['given/time'])

  def metrics(self, totals: dict) -> dict:
    """Returns the mean squared error, and that of every tenth of the levels."""
    return {'eval/loss': totals['error'] / totals['weight']} | levels.metrics('eval/mse', totals)

  def trajectory(self, sampler: str, steps: int) -> dict:
    """Returns dict name -> f64[n], what `denoised` needs of n even steps, from noise to image."""
    share = 1 - np.arange(steps) / steps
    return dict(time=SCALE * share, size=np.full(steps, 1 / steps), last=share - 1 / steps < 0.5 / steps)

  def guided(self, outputs: jax.Array, without: jax.Array, scale: float) -> jax.Array:
    """Returns u + s (c - u) of outputs with a class, c, and without, u, both [B,H,W,.]."""
    return without + scale * (outputs - without)

  def denoised(self, sampler: str, x: jax.Array, outputs: jax.Array, now: dict,
               noise: jax.Array) -> jax.Array:
    """Returns x f32[B,H,W,C] after an Euler step down its velocity; see `ddpm.Ddpm.denoised`."""
    x = x - now['size'] * levels.first(outputs, dict(noise=x))
    return x if self.bound is None else jnp.where(now['last'], jnp.clip(x, -self.bound, self.bound), x)
