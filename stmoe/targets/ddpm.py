"""The noise of a diffusion process, and the process run backwards (arXiv:2006.11239)."""

import typing

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe import targets
from stmoe.core.units import levels
from stmoe.errors import UserError

BITS = np.log(2)
HALF_BIN = 1 / 255                       # pixels from -1 to 1 come in 256 levels


def linear(steps: int) -> np.ndarray:
  """Returns beta f64[T], from 1e-4 to 0.02 for T = 1000, alike for another T (arXiv:2006.11239)."""
  return np.linspace(1e-4, 0.02, steps, dtype=np.float64) * (1000 / steps)


def cosine(steps: int) -> np.ndarray:
  """Returns beta f64[T] of abar = cos^2((t / T + 0.008) / 1.008 pi / 2), at most 0.999 (arXiv:2102.09672)."""
  abar = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  t = np.arange(steps)
  return np.minimum(1 - abar((t + 1) / steps) / abar(t / steps), 0.999)


SCHEDULES = dict(linear=linear, cosine=cosine)
# The weight of an image's squared error by its ratio of signal and noise, abar / (1 - abar).
WEIGHTS = dict(constant=lambda snr: np.ones_like(snr), min_snr=lambda snr: np.minimum(snr, 5) / snr)
SAMPLERS = ('ddpm', 'ddim')


class Process(typing.NamedTuple):
  """A process of T steps as tables f64[T] of its levels; `of` makes it.

  abar, before: the squared share of the image at a level and at the one below, of which the lowest is 1.
  beta: 1 - abar / before.
  """
  abar: np.ndarray
  before: np.ndarray
  beta: np.ndarray

  @classmethod
  def of(cls, abar: np.ndarray) -> 'Process':
    """Returns the Process of falling abar f64[T]."""
    before = np.append(1.0, abar[:-1])
    return cls(abar, before, 1 - abar / before)

  @property
  def log_variances(self) -> tuple[np.ndarray, np.ndarray]:
    """The logarithms f64[T] of the least and the largest variance of a step down: beta~ and beta.

    beta~ of the lowest level is 0; that of the next one stands for it.
    """
    least = self.beta * (1 - self.before) / (1 - self.abar)
    return np.log(np.append(least[1:2] if len(least) > 1 else self.beta, least[1:])), np.log(self.beta)

  @property
  def mean(self) -> tuple[np.ndarray, np.ndarray]:
    """The factors f64[T] of x_0 and of x_t in the mean of x_{t-1} given both."""
    rest = 1 - self.abar
    return (self.beta * np.sqrt(self.before) / rest,
            (1 - self.before) * np.sqrt(self.abar / self.before) / rest)


class Ddpm:
  """The squared error of the noise, and where the model predicts variances, what they cost in bits.

  x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise; the model has x_t and t, and gives noise, and v with
  log variance f log beta_t + (1 - f) log beta~_t, f = (v + 1) / 2. The bits train v alone (arXiv:2102.09672).
  A batch has image, noise [B,H,W,C] and given/time f32[B], a share of the levels: t = floor(share * T).

  Args:
    schedule: of the noise.
    steps: T.
    weight:   of the squared error: 'constant', or 'min_snr', min(snr, 5) / snr.
    variance: whether the model predicts v: its field `variance`.
    bound:    sampling cuts the image that a prediction means to +-bound; None = not.
  """

  kinds, passes, run = ('noise',), 1, ''
  samplers = SAMPLERS
  measures = {
      'loss/diffusion': targets.Measure('squared error of the noise, and bits of the variance'),
      'loss/mse': targets.Measure('squared error'),
      'eval/loss': targets.Measure('squared error of the noise, and bits of the variance',
                                   said='eval loss {:.4f}'),
      'eval/mse': targets.Measure('squared error', said='noise {:.4f}'),
  }

  def __init__(self, *, schedule: ranges.Choice(*SCHEDULES) = 'linear', steps: ranges.Count = 1000,
               weight: ranges.Choice(*WEIGHTS) = 'constant', variance: ranges.Flag = True,
               bound: ranges.Positive | None = None):
    beta = SCHEDULES[schedule](steps)
    if not (0 < beta).all() or not (beta < 1).all():
      raise UserError(f'loss.steps={steps}: the schedule {schedule!r} of so few steps has noise without an '
                      'image; nearest: loss.steps=1000')
    self.process = Process.of(np.cumprod(1 - beta))
    self.factor = WEIGHTS[weight](self.process.abar / (1 - self.process.abar))
    self.steps, self.variance, self.bound = steps, variance, bound

  @property
  def times(self) -> np.ndarray:
    """All levels f64[T] as the model is told them."""
    return np.arange(self.steps, dtype=np.float64)

  def level(self, batch: dict) -> jax.Array:
    """Returns i32[B], the level t of every image."""
    share = batch['given/time']
    return jnp.clip(jnp.floor(share * self.steps), 0, self.steps - 1).astype(jnp.int32)

  def noised(self, batch: dict) -> jax.Array:
    """Returns x_t f32[B,H,W,C]."""
    levels.check(batch)
    abar = self.process.abar
    at = lambda table: levels.wide(levels.table(table, self.level(batch)))
    return at(np.sqrt(abar)) * batch['image'] + at(np.sqrt(1 - abar)) * batch['noise']

  def posed(self, batch: dict) -> dict:
    """Returns a batch as the model has it; see `targets.Target`."""
    return dict(batch, image=self.noised(batch), times=jnp.asarray(self.times, jnp.float32)) | {
        'given/time': self.level(batch).astype(jnp.float32)}

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B]."""
    return levels.weights(batch)

  def counts(self, batch: dict) -> jax.Array:
    """Returns f32[], the number of images."""
    return targets.divisor(self.weights(batch))

  def each(self, outputs: jax.Array, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Returns (squared errors, bits of the variance), both f32[B], of outputs f32[B,H,W,C or 2C]."""
    noise, v = levels.parts(outputs, batch, self.variance)
    weight = levels.table(self.factor, self.level(batch))
    error = weight * levels.mean(jnp.square(noise - batch['noise']))
    return error, jnp.zeros_like(error) if v is None else self._bits(noise, v, batch)

  def _bits(self, noise, v, batch):
    """Bits f32[B] of a pixel in the variance v of the step down from x_t; the noise has no gradient."""
    t, x_0, x_t = self.level(batch), batch['image'], self.noised(batch)
    at = lambda table: levels.wide(levels.table(table, t))
    abar, (of_image, of_noisy) = self.process.abar, self.process.mean
    least, largest = map(at, self.process.log_variances)
    meant = (x_t - at(np.sqrt(1 - abar)) * jax.lax.stop_gradient(noise)) / at(np.sqrt(abar))
    mean = at(of_image) * meant + at(of_noisy) * x_t
    true_mean = at(of_image) * x_0 + at(of_noisy) * x_t
    log_variance = interpolated(v, least, largest)
    kl = 0.5 * (log_variance - least - 1 + jnp.exp(least - log_variance)
                + jnp.square(true_mean - mean) * jnp.exp(-log_variance))
    nats = jnp.where(levels.wide(t) == 0, -binned(x_0, mean, 0.5 * log_variance), kl)
    return levels.mean(nats) / BITS

  def loss(self, outputs: jax.Array, batch: dict, counts: jax.Array) -> tuple:
    """Returns (f32[], metrics) for outputs f32[B,H,W,C or 2C]; see `targets.Target`."""
    error, bits = (jnp.sum(self.weights(batch) * x) / counts for x in self.each(outputs, batch))
    return error + bits, {'loss/diffusion': error + bits, 'loss/mse': error}

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns dict of sums f32[]: error and bits; and by level f32[10]: errors, images."""
    error, bits = self.each(outputs, batch)
    weights = self.weights(batch)
    return dict(error=jnp.sum(weights * error), bits=jnp.sum(weights * bits)) | levels.sums(
        weights, error, batch['given/time'])

  def metrics(self, totals: dict) -> dict:
    """Returns the mean loss, the mean squared error, and that of every tenth of the levels."""
    error, bits = (totals[name] / totals['weight'] for name in ('error', 'bits'))
    return {'eval/loss': error + bits, 'eval/mse': error} | levels.metrics('eval/mse', totals)

  def trajectory(self, sampler: str, steps: int) -> dict:
    """Returns dict name -> f64[n], what `denoised` needs of n evenly spaced levels, from noise to image.

    `time` is what the model is told, the number of the level among all T. Raises UserError for more steps
    than levels.
    """
    if steps > self.steps:
      raise UserError(f'{steps} steps to sample, and the process has {self.steps} levels; nearest: '
                      f'{self.steps}')
    at = np.round(np.linspace(0, self.steps - 1, steps)).astype(int) if steps > 1 else [self.steps - 1]
    short = Process.of(self.process.abar[at])
    least, largest = short.log_variances
    of_image, of_noisy = short.mean
    table = dict(time=np.asarray(at, np.float64), abar=short.abar, before=short.before, least=least,
                 largest=largest, of_image=of_image, of_noisy=of_noisy)
    return {name: values[::-1] for name, values in table.items()}

  def guided(self, outputs: jax.Array, without: jax.Array, scale: float) -> jax.Array:
    """Returns outputs [B,H,W,C or 2C] whose noise is u + s (c - u); u is predicted without a class."""
    channels = outputs.shape[-1] // (1 + self.variance)
    noise = without[..., :channels] + scale * (outputs - without)[..., :channels]
    return jnp.concatenate([noise, outputs[..., channels:]], axis=-1)

  def denoised(self, sampler: str, x: jax.Array, outputs: jax.Array, now: dict,
               noise: jax.Array) -> jax.Array:
    """Returns x one level below, f32[B,H,W,C].

    Args:
      sampler: 'ddpm', a draw of the step down, or 'ddim', without chance (arXiv:2010.02502).
      x:       f32[B,H,W,C]; outputs: of the model for x.
      now:     a level of `trajectory`, dict name -> f32[].
      noise:   f32[B,H,W,C], drawn for this step.
    """
    predicted, v = levels.parts(outputs, dict(noise=x), self.variance)
    image = (x - jnp.sqrt(1 - now['abar']) * predicted) / jnp.sqrt(now['abar'])
    if self.bound is not None:
      image = jnp.clip(image, -self.bound, self.bound)
      predicted = (x - jnp.sqrt(now['abar']) * image) / jnp.sqrt(1 - now['abar'])
    if sampler == 'ddim':
      return jnp.sqrt(now['before']) * image + jnp.sqrt(1 - now['before']) * predicted
    mean = now['of_image'] * image + now['of_noisy'] * x
    log_variance = now['largest'] if v is None else interpolated(v, now['least'], now['largest'])
    return mean + jnp.where(now['before'] < 1, jnp.exp(0.5 * log_variance), 0) * noise


def interpolated(v: jax.Array, least: jax.Array, largest: jax.Array) -> jax.Array:
  """Returns f32[...], the logarithm between `least` and `largest`, broadcast to v, of v from -1 to 1."""
  share = (v + 1) / 2
  return share * largest + (1 - share) * least


def binned(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> jax.Array:
  """Returns the log probability [...] of the bin of pixels x [...] under Gaussians; the end bins are open.

  The distribution function is approximated by a hyperbolic tangent, as in the released code.
  """
  below = lambda z: 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z ** 3)))
  log = lambda p: jnp.log(jnp.maximum(p, 1e-12))
  upper, lower = (below((x - mean + side) * jnp.exp(-log_scale)) for side in (HALF_BIN, -HALF_BIN))
  return jnp.where(x < -0.999, log(upper), jnp.where(x > 0.999, log(1 - lower), log(upper - lower)))
