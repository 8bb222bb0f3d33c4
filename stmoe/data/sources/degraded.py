"""Degraded images beside the images themselves, in rain, behind drops or in haze that is drawn here."""

import dataclasses
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data import record as records
from stmoe.data.images import pixels as images
from stmoe.data.sources import images as pictures

Drawn = typing.Callable[[np.ndarray, np.random.Generator], np.ndarray]


def rain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns f32[H,W,C]: bright slanted streaks are added, a tenth of the columns' number of them and more."""
  side = len(image)
  y, x = np.mgrid[:side, :side].astype(np.float32)
  slope, total = rng.uniform(-0.6, 0.6), np.zeros((side, side), np.float32)
  for _ in range(max(2, side // 4)):
    start, top, length = rng.uniform(0, side), rng.uniform(-side / 2, side), rng.uniform(side / 4, side)
    on = (np.abs(x - start - slope * y) < 0.6) & (y >= top) & (y < top + length)
    total = np.maximum(total, on * np.float32(rng.uniform(0.4, 0.8)))
  return np.clip(image + total[..., None], 0, 1)


def drops(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns f32[H,W,C]: round blobs show the mean of what is behind them, and a little light."""
  side, y, x = len(image), *np.mgrid[:len(image), :len(image)].astype(np.float32)
  for _ in range(int(rng.integers(2, 5))):
    centre, radius = rng.uniform(0, side, 2), rng.uniform(side / 10, side / 5)
    inside = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius ** 2)[..., None]
    if inside.any():
      behind = np.sum(image * inside, axis=(0, 1)) / inside.sum()
      image = np.where(inside, 0.7 * behind + 0.3 * np.float32(rng.uniform(0.5, 1.0)), image)
  return np.clip(image, 0, 1).astype(np.float32)


def haze(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns f32[H,W,C], a white + (1 - a) image with one a from 0.3 to 0.7."""
  share = np.float32(rng.uniform(0.3, 0.7))
  return share + (1 - share) * image


WEATHERS: dict[str, Drawn] = dict(rain=rain, drops=drops, haze=haze)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degraded:
  """Square images, each degraded by one of some weathers, and what they were: pixels from 0 to 1.

  The entry `image` is degraded, `pixels` is the target, both f32[rows,H,W,C]. Routers may read
  `given/weather` i32[rows], the place in `weathers`. The weather of a row is drawn. That of a held-out row is
  always the same.

  task, files, label, image_size, channels, central, crop, cache_dir: see `images.Images`, labels unused.
  weathers:   keys of WEATHERS.
  symmetries: whether in training one of the eight flips and turns of an image is drawn.
  """
  task: ranges.Text
  files: ranges.Many(ranges.Text) = ()
  label: ranges.Text = ''
  image_size: ranges.Count
  channels: ranges.Count = 3
  central: ranges.PartOf1 = 1.0
  crop: ranges.PartOf1 = 1.0
  weathers: ranges.Many(ranges.Choice(*WEATHERS), 1) = tuple(WEATHERS)
  symmetries: ranges.Flag = False
  cache_dir: ranges.Text = ''
  objective: ranges.Choice('restoration') = 'restoration'

  kind = 'degraded images'
  targets = 'pixels'               # what a model must predict: an image

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    return dict(task=self.task, files=self.files, label=self.label)

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch of `rows` images."""
    image = ((rows, self.image_size, self.image_size, self.channels), np.float32)
    return {'image': image, 'pixels': image, 'weights': ((rows, 1), np.int32),
            'given/weather': ((rows,), np.int32)}

  def lengths(self, model: typing.Any) -> dict:
    """Returns dict stack -> positions of a row: the patches of the model, and one image as target."""
    return dict(encoder=(self.image_size // model.get('patch_size', 1)) ** 2, decoder=1)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> 'Opened':
    """Returns the images; of a run's Record `found` if they are the same."""
    if self.channels not in (1, 3):
      raise errors.UserError(f'data.channels={self.channels}: images have 1 or 3; nearest: data.channels=3')
    return Opened(self, found)


class Opened(pictures.Opened):
  """The rows of a set of images; data/batches.py says what opened data need."""

  def rows(self, name: str, split: str, seed: int, train: bool) -> 'Rows':
    """Returns the Rows of a split; `train` makes crops and symmetries random, too."""
    del name
    return Rows(self._pictures[split], self._source, seed, train)


@dataclasses.dataclass(frozen=True)
class Rows:
  """The images of one split under the fields of a configuration."""
  pictures: typing.Any
  data: Degraded
  seed: int
  train: bool

  def __len__(self):
    return len(self.pictures)

  def fill(self, batch: dict[str, np.ndarray], at: int, row: int, number: int) -> None:
    """Writes image `row` into row `at` of `batch`; `number`, or `row` if held out, decides what is random."""
    d = self.data
    counter = [0, 0, 0, number if self.train else row]
    rng = np.random.Generator(np.random.Philox(key=self.seed, counter=counter))
    pixels, _ = self.pictures.read(row)
    cropped = self.train and d.crop < 1
    box = pictures.cut(pixels.shape, d.crop, rng) if cropped else pictures.middle(pixels.shape, d.central)
    pixels = images.resize(images.with_channels(pixels, d.channels), d.image_size, box) / np.float32(255)
    if self.train and d.symmetries:
      turned, flipped = divmod(int(rng.integers(8)), 2)
      pixels = np.rot90(pixels[:, ::-1] if flipped else pixels, turned)
    weather = int(rng.integers(len(d.weathers)))
    batch['image'][at] = WEATHERS[d.weathers[weather]](pixels, rng)
    batch['pixels'][at] = pixels
    batch['given/weather'][at] = weather
    batch['weights'][at] = 1
