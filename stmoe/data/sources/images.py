"""Images with one label each, as rows of batches: of scikit-learn, .npz files, folders, TensorFlow Datasets.

What is random in row i of a stream depends on the row's number and on the seed only.
"""

import dataclasses
import hashlib
import typing

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.data import arrays
from stmoe.data import record as records
from stmoe.data import store
from stmoe.data.images import pixels as images
from stmoe.data.text import cache as caches
from stmoe.data.text import tasks

TFDS, FOLDER = 'tfds:', 'folder'
ASPECT = (3 / 4, 4 / 3)  # of random crops, width over height


@dataclasses.dataclass(frozen=True)
class Labels:
  """What images have in place of a vocabulary."""
  vocab_size: int

  @property
  def digest(self) -> str:
    """Returns what identifies the labels in a checkpoint."""
    return f'{self.vocab_size} labels'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
  """Square images and their labels.

  task: 'digits' (1,797 handwritten digits of 8 x 8 that scikit-learn carries; every fifth is held out),
    'npz', 'folder', or 'tfds:NAME' for a set of TensorFlow Datasets, for example 'tfds:cifar10'.
  files: of task npz: one for both splits, or one for training and one for validation. Arrays are image or
    images uint8[N,H,W] or [N,H,W,C]; label or labels, integers from 0; in one file split ('train' or
    'validation' for each image), without which every tenth image is held out. Of task folder: a folder with
    a folder of PNG or JPEG files for each class, or with two such folders `train` and `validation`; or these
    two. Classes are numbered in the order of their names.
  label: name of the array (npz) or feature (tfds) of labels; '' = label or labels.
  image_size, channels: of the rows; other images are resized, grey images repeated.
  central: share of the shorter side of the square that is cut out of the middle (1.0 = all of it).
  crop: the least share of the area of an image that training cuts out, at random, in place of the middle.
    The sides of the part are between 3:4 and 4:3 (Inception's crop takes 0.05); 1.0 = none.
  flip: whether in training half of the images are mirrored.
  mean, std: rows are (pixel / 255 - mean) / std; 0.5 and 0.5 give -1 to 1.
  cache_dir: folder of caches; '' = $STMOE_CACHE_DIR, else ~/.cache/stmoe.
  """
  task: ranges.Text
  files: ranges.Many(ranges.Text)
  label: ranges.Text
  image_size: ranges.Count
  channels: ranges.Count
  central: ranges.PartOf1
  crop: ranges.PartOf1
  flip: ranges.Flag
  mean: ranges.Any
  std: ranges.Positive
  cache_dir: ranges.Text
  objective: ranges.Choice('classification') = 'classification'

  kind = 'images'
  targets = 'labels'               # what a model must predict: a class of the whole row

  def content(self) -> dict:
    """Returns what says which data these are, for data.json."""
    return dict(task=self.task, files=self.files, label=self.label)

  def shapes(self, rows: int) -> dict:
    """Returns dict name -> (shape, dtype) of a batch of `rows` images, each with one target, its label."""
    image = (rows, self.image_size, self.image_size, self.channels)
    of_label = ((rows, 1), np.int32)
    return dict(image=(image, np.float32), labels=of_label, weights=of_label)

  def lengths(self, model: typing.Any) -> dict:
    """Returns dict stack -> positions of a row: the patches of a model that has such, and one label."""
    if 'patch_size' not in model:
      return dict(decoder=1)
    patches = (model.image_size // model.patch_size) ** 2
    return dict(encoder=patches + (model.get('pooling', 'token') == 'token'), decoder=1)

  def open(self, cfg: ml_collections.ConfigDict, found: records.Record = records.NONE) -> 'Opened':
    """Returns the images; of a run's Record `found` if they are the same."""
    check(self)
    return Opened(self, found)


class Opened:
  """The rows of a set of images; data/batches.py says what opened data need."""

  vocabulary = None
  metrics: dict = {}

  def __init__(self, source: typing.Any, found: records.Record):
    self._source, name, recorded_caches = source, source.task, found.known(source)
    make = lambda: keep(source, found.facts(source).get('classes', ()))
    self.recorded = bool(recorded_caches)
    self.files = found.values['files'] if recorded_caches else records.seen(source.files)
    cache = found.kept(source, name, make) if recorded_caches else make()
    self.facts = {field: value for field, value in cache.facts.items() if field == 'classes'}
    self._pictures = load(cache)
    self.keys, self.caches, self.weights = {name: cache.key}, {name: cache.path}, [1.0]

  def rows(self, name: str, split: str, seed: int, train: bool) -> typing.Any:
    """Returns the Rows of a split; `train` makes them random, where the configuration says so."""
    del name
    return Rows(self._pictures[split], self._source, seed, train)

  def info(self) -> dict:
    """Returns the facts of the images; see `info` of data/batches.py."""
    sizes = {split: len(pictures) for split, pictures in self._pictures.items()}
    labels = Labels(max(pictures.num_labels for pictures in self._pictures.values()))
    return dict(vocab=labels, vocab_size=labels.vocab_size, num_images=sizes,
                sources=[dict(task=name, key=key) for name, key in self.keys.items()])


@dataclasses.dataclass(frozen=True)
class Rows:
  """The images of one split under the fields of a configuration."""
  pictures: typing.Any                 # `Arrays`, or what reads them from files
  data: Images
  seed: int
  train: bool

  def __len__(self):
    return len(self.pictures)

  def fill(self, batch: dict[str, np.ndarray], at: int, row: int, number: int) -> None:
    """Writes image `row` into row `at` of `batch`; `number` decides what is random in it."""
    d, rng = self.data, None
    if self.train and (d.flip or d.crop < 1):
      rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, number]))
    pixels, label = self.pictures.read(row)
    box = middle(pixels.shape, d.central) if rng is None or d.crop >= 1 else cut(pixels.shape, d.crop, rng)
    pixels = images.resize(images.with_channels(pixels, d.channels), d.image_size, box)
    if rng is not None and d.flip and rng.random() < 0.5:
      pixels = pixels[:, ::-1]
    batch['image'][at] = (pixels / np.float32(255) - np.float32(d.mean)) / np.float32(d.std)
    batch['labels'][at] = label
    batch['weights'][at] = 1


def middle(shape: tuple[int, ...], share: float) -> tuple[float, float, float, float]:
  """Returns the box (left, top, right, bottom) of the middle square of an image [H,W,...].

  >>> middle((10, 20), 0.5)
  (7.5, 2.5, 12.5, 7.5)
  """
  height, width = shape[:2]
  side = share * min(height, width)
  left, top = (width - side) / 2, (height - side) / 2
  return left, top, left + side, top + side


def cut(shape: tuple[int, ...], least: float, rng: np.random.Generator) -> tuple[float, float, float, float]:
  """Returns a random box of an image [H,W,...]: `least` to all of its area, sides 3:4 to 4:3."""
  height, width = shape[:2]
  area = rng.uniform(least, 1.0) * height * width
  aspect = np.exp(rng.uniform(*np.log(ASPECT)))
  wide, high = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
  left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
  return left, top, left + wide, top + high


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Pictures in memory: images uint8[N,H,W] or [N,H,W,C], labels i64[N]."""
  images: np.ndarray
  labels: np.ndarray
  num_labels: int

  def __len__(self):
    return len(self.labels)

  def read(self, row: int) -> tuple[np.ndarray, int]:
    """Returns (uint8[H,W,C], label)."""
    pixels = self.images[row]
    return pixels if pixels.ndim == 3 else pixels[..., None], self.labels[row]


def keep(data: typing.Any, classes: typing.Sequence[str] = ()) -> store.Kept:
  """Returns the `store.Kept` of the images of section `data`; makes the folder if there is none.

  classes: of a run, by number, for folders of images.
  """
  if data.task.startswith(TFDS):
    from stmoe.data.images import tfds
    return tfds.keep(data.task.removeprefix(TFDS), data.label, data.cache_dir)
  if data.task == FOLDER:
    from stmoe.data.images import folder
    return folder.keep(data.files, data.cache_dir, classes)
  if data.task not in LOCAL:
    names = (*LOCAL, FOLDER, f'{TFDS}NAME')
    raise errors.UserError(f'data.task: no set of images is called {data.task!r}'
                           f'{errors.nearest(data.task, names)} (there are: {", ".join(names)})')
  pictures, key = LOCAL[data.task](data)
  path = store.named(caches.folder(data.cache_dir), f'images-{data.task}', key)

  def write(folder):
    for split, of_split in pictures.items():
      np.save(folder / f'{split}.images.npy', of_split.images)
      np.save(folder / f'{split}.labels.npy', of_split.labels)
    return dict(key=key, num_labels=max(of_split.num_labels for of_split in pictures.values()))
  return store.Kept(path, store.kept(path, write))


def load(kept: store.Kept) -> dict:
  """Returns dict split -> pictures of a `store.Kept`.

  Pictures have a length, `num_labels` and `read(row) -> (uint8[H,W,C], label)`.
  """
  facts = kept.facts
  if not (kept.path / 'train.images.npy').exists():
    from stmoe.data.images import tfds
    return tfds.load(kept.path, facts)
  array = lambda split, name: np.load(kept.path / f'{split}.{name}.npy', allow_pickle=False)
  return {split: Arrays(array(split, 'images'), array(split, 'labels'), facts['num_labels'])
          for split in tasks.SPLITS}


def check(data: Images) -> None:
  """Raises UserError for values that are no shares or sizes."""
  for field in ('central', 'crop'):
    if not 0 < getattr(data, field) <= 1:
      raise errors.UserError(f'data.{field}={getattr(data, field)}: must be above 0 and at most 1')
  if data.image_size < 1 or data.channels not in (1, 3) or not data.std > 0:
    raise errors.UserError(f'data.image_size={data.image_size}, channels={data.channels}, std={data.std}: a '
                           'size is at least 1, channels are 1 or 3, std is above 0')


def digits(data: typing.Any) -> dict:
  """Returns the digits of scikit-learn (UCI, Alpaydin and Kaynak 1998, test part), 0 to 16 as 0 to 255."""
  if data.files:
    raise errors.UserError('data.files is set, but task digits reads none; use data.task=npz')
  from sklearn import datasets
  dataset = datasets.load_digits()
  pixels = np.round(dataset.images * (255 / 16)).astype(np.uint8)
  held_out = np.arange(len(pixels)) % 5 == 4
  return _divided(pixels, dataset.target.astype(np.int64), held_out)


def npz(data: typing.Any) -> dict:
  """Returns the images of the user's files."""
  paths = tuple(data.files)
  if len(paths) not in (1, 2):
    raise errors.UserError(f'data.files: task npz reads one file, or one for each split; it got {len(paths)}')
  parts = [_read(file, data.label) for file in paths]
  if len(parts) == 2:
    (pixels, labels, _), (others, other_labels, _) = parts
    if pixels.shape[1:] != others.shape[1:]:
      raise errors.UserError(f'{paths[0]} has images of {pixels.shape[1:]}, {paths[1]} of {others.shape[1:]}')
    held_out = np.arange(len(pixels) + len(others)) >= len(pixels)
    return _divided(np.concatenate([pixels, others]), np.concatenate([labels, other_labels]), held_out)
  pixels, labels, split = parts[0]
  return _divided(pixels, labels, arrays.held_out(paths[0], split, len(pixels)))


LOCAL = {'digits': digits, 'npz': npz}


def _divided(pixels, labels, held_out):
  """(dict split -> Arrays, fingerprint) of images; `held_out` says which are held out."""
  split = {'train': ~held_out, 'validation': held_out}
  for name, chosen in split.items():
    if not chosen.any():
      raise errors.UserError(f'the split {name!r} holds no images')
  digest = hashlib.sha256(repr((pixels.shape, pixels.dtype.str)).encode())
  for part in (pixels, labels, held_out):
    digest.update(np.ascontiguousarray(part).tobytes())
  num_labels = int(labels.max()) + 1
  by_split = {name: Arrays(pixels[chosen], labels[chosen], num_labels) for name, chosen in split.items()}
  return by_split, digest.hexdigest()[:16]


def _read(file, label):
  """(images uint8, labels i64, split or None) of an .npz file."""
  fields = arrays.read(file)
  image = arrays.named(file, fields, 'image', 'images')
  label = arrays.named(file, fields, *((label,) if label else ('label', 'labels')))
  pixels, labels, split = fields[image], fields[label], fields.get('split')
  if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[3:] not in ((), (1,), (3,)):
    raise errors.UserError(f'{file}: {image} is {pixels.dtype}{list(pixels.shape)}; it must be uint8[N,H,W] '
                           'or uint8[N,H,W,C] with C of 1 or 3')
  if labels.shape != pixels.shape[:1] or labels.dtype.kind not in 'iu' or not labels.size or labels.min() < 0:
    raise errors.UserError(f'{file}: {label} is {labels.dtype}{list(labels.shape)}; it must hold an integer '
                           f'from 0 for each of the {len(pixels)} images')
  return pixels, labels.astype(np.int64), split

