"""Images to be found in noise: those of source `images`, each with noise, its level, and its class or none.

All that is random belongs to a row: its noise, its level, whether its class is hidden. So it is the same
however a batch is divided and wherever a run resumes.
"""

import dataclasses
import typing

import numpy as np

from stmoe import ranges
from stmoe.data.sources import images

# How levels are drawn in training, from 0, the image, to 1, noise.
LEVELS: dict[str, typing.Callable[[np.random.Generator], float]] = {
    'uniform': lambda rng: rng.random(),
    'logit_normal': lambda rng: 1 / (1 + np.exp(-rng.normal())),
}
HELD_OUT = 20                            # levels of evaluation, evenly spaced; rows take them in turn
NO_CLASS = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion(images.Images):
  """Images with noise of a level; the other fields are those of `images.Images`.

  levels: how training draws the level: 'uniform', or 'logit_normal', the sigmoid of a normal number, as
    rectified flows take it. Evaluation goes through fixed levels, with the same noise in every evaluation.
  label_dropout: share of the images of training whose class is hidden, so that the model can do without; 1 =
    all, also in evaluation: a model without classes.
  """
  levels: ranges.Choice(*LEVELS) = 'uniform'
  label_dropout: ranges.Share = 0.1
  objective: ranges.Choice('diffusion') = 'diffusion'

  targets = 'noise'                      # what a model must predict: what noise did to an image

  def clean(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch of `rows` images without noise."""
    return super().shapes(rows)

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch of `rows` images."""
    image = (rows, self.image_size, self.image_size, self.channels)
    return dict(image=(image, np.float32), noise=(image, np.float32), weights=((rows, 1), np.int32)) | {
        'given/time': ((rows,), np.float32), 'given/label': ((rows,), np.int32)}

  def lengths(self, model: typing.Any) -> dict:
    """Returns dict stack -> positions of a row: the patches, and one prediction."""
    return dict(encoder=(model.image_size // model.patch_size) ** 2, decoder=1)

  def open(self, cfg: typing.Any, found: typing.Any = images.records.NONE) -> 'Opened':
    """Returns the images; of a run's Record `found` if they are the same."""
    images.check(self)
    return Opened(self, found)


class Opened(images.Opened):
  """The rows of a set of images, with noise."""

  def __init__(self, source: Diffusion, found: typing.Any):
    super().__init__(source, found)
    self._diffusion = source

  def rows(self, name: str, split: str, seed: int, train: bool) -> typing.Any:
    """Returns the Rows of a split; `train` draws levels and hides classes."""
    return Rows(super().rows(name, split, seed, train), self._diffusion)

  def pictures(self, split: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (images f32[n,H,W,C] without noise, labels i32[n]), the first of a split, `most` at most."""
    name, = self.keys
    rows = super().rows(name, split, 0, False)
    number = min(len(rows), most)
    shapes = self._diffusion.clean(number)
    batch = {entry: np.zeros(shape, dtype) for entry, (shape, dtype) in shapes.items()}
    for at in range(number):
      rows.fill(batch, at, at, at)
    return batch['image'], batch['labels'][:, 0]


@dataclasses.dataclass(frozen=True)
class Rows:
  """The images of one split, each with noise."""
  images: images.Rows
  data: Diffusion

  def __len__(self):
    return len(self.images)

  def fill(self, batch: dict[str, np.ndarray], at: int, row: int, number: int) -> None:
    """Writes image `row` into row `at` of `batch`; `number` decides what is random in it."""
    source, data, train = self.images, self.data, self.images.train
    label = {'labels': np.zeros((at + 1, 1), np.int32)}
    source.fill(batch | label, at, row, number)
    rng = np.random.Generator(np.random.Philox(key=source.seed, counter=[0, 0, 1, number]))
    batch['noise'][at] = rng.standard_normal(batch['noise'].shape[1:], np.float32)
    batch['given/time'][at] = LEVELS[data.levels](rng) if train else (number % HELD_OUT + 0.5) / HELD_OUT
    hidden = rng.random() < data.label_dropout if train else data.label_dropout == 1
    batch['given/label'][at] = NO_CLASS if hidden else label['labels'][at, 0]
