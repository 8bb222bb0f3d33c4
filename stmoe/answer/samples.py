"""Images out of noise: a trained denoiser run from the last level to the first, `stmoe sample`.

All that is random in a sample follows from the seed and the sample's number. So the same samples come in any
batches and on any mesh.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe import files
from stmoe.analysis.figures import noise_levels
from stmoe.core import seeds
from stmoe.hosts import distributed
from stmoe.train import check
from stmoe.train import opened

MOST_JUDGED = 2000                       # images that the classifier learns from, and that it is judged by


class Samples(typing.NamedTuple):
  """What `draw` found.

  step:   of the checkpoint.
  images: uint8[n,H,W,C]; label: i32[n], -1 = none.
  level:  f32[t], the share of noise at every step, from 1 on down.
  load:   dict layer -> f32[t,E], the tokens of every expert at every step, without those of guidance.
  score:  dict of numbers, see `score`.
  """
  step: int
  images: np.ndarray
  label: np.ndarray
  level: np.ndarray
  load: dict[str, np.ndarray]
  score: dict[str, float]


def draw(cfg, path, say: typing.Callable, *, number: int, steps: int, sampler: str = '',
         guidance: float = 1.0, seed: int = 0, labels: typing.Sequence[int] = (), step: int | None = None,
         devices=None) -> Samples:
  """Returns `number` Samples of a checkpoint of run directory `path`.

  Args:
    cfg:      the run's configuration; batches are of eval.batch_size images.
    say:      called with lines of text.
    steps:    of the sampler, at most as many as the process has.
    sampler:  one of the target's; '' = the first of them.
    guidance: s of u + s (c - u), where c is predicted with the class and u without; 1 = c alone.
    labels:   of the samples, in turn; none = all classes in turn, if the model knows classes.
    step:     of the checkpoint; None = the newest.
  Raises:
    UserError: for what the run cannot do; nothing is compiled then.
  """
  with opened.run(cfg, path, say, devices) as (plan, source):
    sampler, trajectory = _asked(plan.target, sampler, steps)
    facts = source.info()
    label = _labels(cfg, labels, guidance, number)
    at, state, _, _ = opened.restore(plan, path, facts['vocab'], say, step)
    say(f'sampling the checkpoint of step {at:,}: {number:,} images, {steps:,} steps of {sampler}')
    run = make(plan, cfg, sampler, trajectory, guidance, seed)
    images, loads, size = [], [], cfg.eval.batch_size
    for start in range(0, number, size):
      part = jax.device_get(run(state['params'], state['router_state'],
                                *_batch(plan.mesh, label[start:start + size], start, size)))
      images.append(part[0][:number - start])
      loads.append(part[1])
      say(f'{min(start + size, number):,} of {number:,} images')
    drawn = np.concatenate(images)
    pixels = np.clip(np.round((drawn * cfg.data.std + cfg.data.mean) * 255), 0, 255).astype(np.uint8)
    level = trajectory['time'] / plan.target.times[-1]
    load = jax.tree.map(lambda *of_batches: sum(of_batches), *loads)
    return Samples(at, pixels, label, level.astype(np.float32), load, score(drawn, label, source))


def _asked(target, sampler, steps):
  """(sampler, trajectory) of a target; raises UserError for what it has not."""
  there = getattr(target, 'samplers', ())
  if not there:
    raise errors.UserError(f'target {type(target).__name__} predicts no noise, so that there is nothing to '
                           'sample; nearest: a run of stmoe train switch_dit/digits')
  if sampler and sampler not in there:
    raise errors.UserError(f'--sampler {sampler}: target {type(target).__name__} has none of that name'
                           f'{errors.nearest(sampler, there)} (it has: {", ".join(there)})')
  sampler = sampler or there[0]
  return sampler, target.trajectory(sampler, steps)


def _labels(cfg, labels, guidance, number):
  """i32[number], the classes of the samples."""
  classes = cfg.model.vocab_size
  wrong = [label for label in labels if not -1 <= label < classes]
  if wrong:
    raise errors.UserError(f'--label {wrong[0]}: the model knows {classes} classes; labels go from -1, none, '
                           f'to {classes - 1}')
  if guidance != 1 and not classes:
    raise errors.UserError(f'--guidance {guidance:g}: the model knows no classes; nearest: --guidance 1')
  turns = np.array(labels if len(labels) else range(classes) if classes else [-1], np.int32)
  return np.resize(turns, number)


def _batch(mesh, label, start, size):
  """(labels i32[B], numbers i32[B], weights i32[B,1]) on the devices; rows without a sample have weight 0."""
  rows = len(label)
  index, parts = distributed.shard(mesh, size)
  own = slice(index * size // parts, (index + 1) * size // parts)
  whole = dict(label=np.resize(label, size), number=np.arange(start, start + size, dtype=np.int32),
               weights=(np.arange(size) < rows).astype(np.int32)[:, None])
  return check.place({name: a[own] for name, a in whole.items()}, mesh).values()


def make(plan, cfg, sampler: str, trajectory: dict, guidance: float, seed: int) -> typing.Callable:
  """Returns the jitted (params, routers, label [B], number [B], weights [B,1]) -> (images, loads).

  images: f32[B,H,W,C], standardised as those of training; loads: dict layer -> f32[t,E].
  """
  target = plan.target
  shape = (cfg.model.image_size, cfg.model.image_size, cfg.model.channels)
  now = {name: jnp.asarray(np.ascontiguousarray(a), jnp.float32) for name, a in trajectory.items()}

  def run(params, routers, label, number, weights):
    model = plan.model(params, routers)
    keys = jax.vmap(lambda n: jax.random.fold_in(seeds.key(seed), n))(number)      # of every sample
    normal = lambda t: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)

    def predict(x, time, label):
      batch = dict(image=x, weights=weights, times=jnp.asarray(target.times, jnp.float32))
      return model(batch | {'given/time': jnp.full(label.shape, time), 'given/label': label}, train=False)

    def body(x, of_step):
      t, now = of_step
      outputs, aux = predict(x, now['time'], label)
      if guidance != 1:
        other, _ = predict(x, now['time'], jnp.full_like(label, -1))
        outputs = target.guided(outputs, other, guidance)
      x = axes.constrain(target.denoised(sampler, x, outputs, now, normal(t + 1)), 'batch', None, None, None)
      return x, {layer: one.load for layer, one in aux.items()}

    x = axes.constrain(normal(0), 'batch', None, None, None)
    return jax.lax.scan(body, x, (jnp.arange(len(now['time'])), now))
  return jax.jit(run, out_shardings=distributed.everywhere(plan.mesh))


def score(images: np.ndarray, label: np.ndarray, source: typing.Any) -> dict[str, float]:
  """Returns what a classifier and a distance of pixels say of images f32[n,H,W,C]: substitutes for FID.

  accuracy          samples of a class that a classifier of the training images takes for that class
  accuracy_real     the same of held-out images
  classes           exp of the entropy of the classes that it sees in all samples
  distance          Fréchet's, between Gaussians of the pixels of samples and of held-out images
  distance_real     the same of as many training images; n below some hundreds makes both large
  """
  from sklearn import svm
  train, held_out = (source.pictures(split, MOST_JUDGED) for split in ('train', 'validation'))
  flat = lambda images: images.reshape(len(images), -1).astype(np.float64)
  classifier = svm.SVC(random_state=0).fit(flat(train[0]), train[1])
  found, classed = classifier.predict(flat(images)), label >= 0
  share = np.unique(found, return_counts=True)[1] / len(found)
  values = dict(accuracy_real=np.mean(classifier.predict(flat(held_out[0])) == held_out[1]),
                classes=np.exp(-np.sum(share * np.log(share))),
                distance=frechet(flat(images), flat(held_out[0])),
                distance_real=frechet(flat(train[0][:len(images)]), flat(held_out[0])))
  values |= dict(accuracy=np.mean((found == label)[classed])) if classed.any() else {}
  return {name: float(value) for name, value in sorted(values.items())}


def frechet(a: np.ndarray, b: np.ndarray) -> float:
  """Returns Fréchet's distance of the Gaussians of rows a [n,d] and b [m,d]; 0 for equal rows.

  >>> round(frechet(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])), 6)
  9.0
  """
  covariances = [np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], -1) for x in (a, b)]
  values, vectors = np.linalg.eigh(covariances[0])
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  both = np.linalg.eigvalsh(root @ covariances[1] @ root)            # of the square of the geometric mean
  spread = sum(np.trace(c) for c in covariances) - 2 * np.sum(np.sqrt(np.maximum(both, 0)))
  return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + max(spread, 0.0))


def grid(images: np.ndarray, least: int = 32) -> np.ndarray:
  """Returns uint8[H,W,C], images uint8[n,h,w,C] in rows of about the square root of n, thin lines between.

  Args:
    least: pixels of a side of an image, which is enlarged by a whole number.
  """
  number, side = len(images), images.shape[1]
  across, factor = int(np.ceil(np.sqrt(number))), max(1, -(-least // side))
  large = images.repeat(factor, axis=1).repeat(factor, axis=2)
  whole = np.full((-(-number // across), across, side * factor + 2, side * factor + 2, images.shape[-1]), 255,
                  np.uint8)
  for n, image in enumerate(large):
    whole[n // across, n % across, 1:-1, 1:-1] = image
  rows, columns, high, wide, channels = whole.shape
  return whole.transpose(0, 2, 1, 3, 4).reshape(rows * high, columns * wide, channels)


def write(samples: Samples, path, out) -> list:
  """Writes Samples: a grid to `out`, .png, all arrays beside it as .npz; the loads also into run `path`.

  Returns the files that were written.
  """
  from stmoe.data.images import pixels
  routing = dict(level=samples.level, **{f'load/{layer}': load for layer, load in samples.load.items()})
  arrays = out.with_suffix('.npz')
  files.write_bytes(out, pixels.encode(grid(samples.images)))
  files.write_arrays(arrays, dict(images=samples.images, label=samples.label, **routing))
  if not samples.load:
    return [out, arrays]
  files.write_arrays(path / noise_levels.FILE, routing)
  return [out, arrays, path / noise_levels.FILE]
