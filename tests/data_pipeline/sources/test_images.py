"""Images: what a row holds, what is random in it, and that streams resume and shard like those of text."""

import json
import pathlib
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from stmoe import errors
from stmoe.data import batches as pipeline
from stmoe.data import record
from stmoe.data.images import pixels
from stmoe.data.sources import images as vision

FIELDS = dict(objective='classification', task='digits', files=(), label='', image_size=8, channels=1,
              central=1.0, crop=1.0, flip=False, mean=0.5, std=0.5, shuffle=True, eval_split='validation',
              cache_dir='')


def config(**fields):
  return ml_collections.ConfigDict(dict(seed=0, train=dict(batch_size=8), eval=dict(batch_size=100),
                                        data=FIELDS | fields))


def take(batches, n):
  return [next(batches) for _ in range(n)]


def same(one, other):
  return all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
             for a, b in zip(one, other, strict=True))


@pytest.fixture
def write(tmp_path):
  """Returns write(name, **arrays) -> path of an .npz file."""
  def file(name, **arrays):
    np.savez(tmp_path / f'{name}.npz', **arrays)
    return str(tmp_path / f'{name}.npz')
  return file


def gradient(n=20, height=8, width=8):
  """Images whose pixel (y, x) of image i is 10 y + x + i."""
  y, x = np.mgrid[:height, :width]
  return (10 * y + x + np.arange(n)[:, None, None]).astype(np.uint8)


def test_digits_are_whole_and_scaled():
  cfg = config(shuffle=False)
  facts = pipeline.info(cfg)
  assert facts['vocab_size'] == 10 and facts['num_images'] == dict(train=1438, validation=359)
  batch = next(pipeline.train_iterator(cfg))
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == dict(
      image=((8, 8, 8, 1), 'float32'), labels=((8, 1), 'int32'),
      weights=((8, 1), 'int32'))
  # The set begins 0 1 2 3 4 5 6 7 8, of which the fifth is held out; 16 is the darkest of its greys.
  assert batch['labels'][:, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
  assert batch['image'].min() == -1 and batch['image'].max() == 1
  held_out = list(pipeline.eval_batches(cfg))
  assert held_out[0]['labels'][0] == 4
  assert sum(b['weights'].sum() for b in held_out) == 359
  assert not held_out[-1]['image'][59:].any() and not held_out[-1]['weights'][59:].any()


def test_streams_are_deterministic_resume_and_shard():
  cfg = config(crop=0.5, flip=True)
  whole = take(pipeline.train_iterator(cfg), 20)
  assert same(whole, take(pipeline.train_iterator(cfg), 20))
  iterator = pipeline.train_iterator(cfg)
  take(iterator, 3)
  state = json.loads(json.dumps(iterator.get_state()))
  fresh = pipeline.train_iterator(cfg)
  fresh.set_state(state)
  assert same(take(fresh, 5), whole[3:8])
  halves = [take(pipeline.train_iterator(cfg, shard, 2), 4) for shard in range(2)]
  joined = [{k: np.concatenate([half[t][k] for half in halves]) for k in whole[0]} for t in range(4)]
  assert same(joined, whole[:4])
  cfg.seed = 1
  assert not same(whole, take(pipeline.train_iterator(cfg), 20))
  with pytest.raises(errors.UserError, match='the data has changed'):
    fresh.set_state(dict(state, data='digits-0'))


def test_randomness_is_in_training_only_and_differs_between_epochs(write):
  fields = dict(task='npz', files=(write('a', images=gradient(), labels=np.arange(20) % 3),), shuffle=False)
  cfg = config(**fields, crop=0.3, flip=True)
  cfg.train.batch_size = 18
  first, second = take(pipeline.train_iterator(cfg), 2)
  assert not same([first], [second])
  assert same(pipeline.eval_batches(cfg), pipeline.eval_batches(config(**fields)))
  cfg.data.eval_split = 'train'                                      # nor when that is what it covers
  assert same(pipeline.eval_batches(cfg), pipeline.eval_batches(config(**fields, eval_split='train')))


def test_half_of_the_rows_are_mirrored(write):
  cfg = config(task='npz', files=(write('a', image=gradient(400), label=np.zeros(400, int)),), flip=True,
               mean=0.0, std=1 / 255)
  cfg.train.batch_size = 360
  rows = next(pipeline.train_iterator(cfg))['image'][..., 0]
  step = rows[:, 0, 1] - rows[:, 0, 0]
  np.testing.assert_array_equal(np.unique(np.rint(step)), [-1, 1])
  assert 130 < (step < 0).sum() < 230


def test_random_crops_lie_inside_and_have_the_stated_sizes():
  rng = np.random.default_rng(0)
  boxes = np.array([vision.cut((30, 40, 3), 0.2, rng) for _ in range(2000)])
  left, top, right, bottom = boxes.T
  assert left.min() >= 0 and top.min() >= 0 and right.max() <= 40 and bottom.max() <= 30
  share = (right - left) * (bottom - top) / 1200
  assert 0.199 < share.min() < 0.25 and share.max() > 0.95
  aspect = ((right - left) / (bottom - top))[share < 0.5]            # larger ones are cut off at the border
  assert 0.749 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.334


def test_the_middle_is_cut_out_and_resized(write):
  # Of 8 x 12 the middle 8 x 8 begins at column 2; half of it is 4 x 4 from row 2, column 4.
  file = write('a', image=gradient(10, 8, 12), label=np.arange(10))
  cfg = config(task='npz', files=(file,), image_size=4, central=0.5, channels=3, mean=0.0, std=1 / 255,
               shuffle=False)
  row = next(pipeline.train_iterator(cfg))['image'][0]
  np.testing.assert_allclose(row[..., 0], gradient(1, 8, 12)[0, 2:6, 4:8], rtol=1e-6)
  assert (row == row[..., :1]).all()                                 # one channel, three times
  cfg.data.update(central=1.0, image_size=2)
  row = next(pipeline.train_iterator(cfg))['image'][0, ..., 0]
  # Shrunk four times, a triangle of 8 pixels with its top at the middle of every quarter, cut at the border.
  assert abs(row[0, 1] - row[0, 0] - 3) < 1 and abs(row[1, 0] - row[0, 0] - 30) < 6


def test_splits_of_files(write):
  pixels, labels = gradient(), np.arange(20)
  one = write('one', images=pixels, character=labels,
              split=np.where(labels < 5, 'validation', 'train'))
  two = (write('a', image=pixels[:12, ..., None], label=labels[:12]),
         write('b', images=pixels[12:, ..., None], labels=labels[12:]))
  named = dict(files=(one,), label='character')
  for fields, held_out in [(named, range(5)), (dict(files=two), range(12, 20))]:
    cfg = config(task='npz', **fields)
    cfg.eval.batch_size = len(held_out)
    [batch] = pipeline.eval_batches(cfg)
    assert batch['labels'][:, 0].tolist() == list(held_out)
    assert pipeline.info(cfg)['vocab_size'] == 20


@pytest.mark.parametrize('fields, said', [
    (dict(task='digit'), "no set of images is called 'digit'; nearest: digits"),
    (dict(files=('x.npz',)), 'task digits reads none'),
    (dict(task='npz'), 'reads one file'),
    (dict(task='npz', files=('missing.npz',)), 'missing.npz is not readable'),
    (dict(crop=0.0), 'data.crop=0.0: must be above 0'),
    (dict(central=1.5), 'data.central=1.5: must be above 0 and at most 1'),
    (dict(channels=2), 'channels are 1 or 3'),
    (dict(eval_split='valid'), "data.eval_split='valid'; nearest: validation"),
    (dict(objective='classificaton'), 'nearest: classification')])
def test_mistakes_are_one_line(fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    pipeline.train_iterator(config(**fields))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('arrays, said', [
    (dict(pictures=gradient()), "no array 'image' or 'images'.*it has: pictures"),
    (dict(image=gradient()), "no array 'label' or 'labels'"),
    (dict(image=gradient() / 255, label=np.arange(20)), 'float64.* must be uint8'),
    (dict(image=gradient(), label=np.arange(19)), r'int64\[19\]; it must hold an integer'),
    (dict(image=gradient(), label=np.arange(20) - 1), 'an integer from 0'),
    (dict(image=gradient(), label=np.arange(20), split=np.full(20, 'test')), "split has 'test'"),
    (dict(image=gradient(), label=np.arange(20), split=np.array('train')), r'shape \[\]; it must be \[20\]'),
    (dict(image=gradient(), label=np.arange(20), split=np.full(20, 'train')), "'validation' holds no images"),
])
def test_wrong_files_are_named(write, arrays, said):
  with pytest.raises(errors.UserError, match=said):
    pipeline.train_iterator(config(task='npz', files=(write('a', **arrays),)))


def test_colours_are_not_made_grey(write):
  file = write('a', image=np.zeros((10, 8, 8, 3), np.uint8), label=np.arange(10))
  with pytest.raises(errors.UserError, match='data.channels=1, but an image has 3'):
    next(pipeline.train_iterator(config(task='npz', files=(file,))))


@pytest.fixture
def pictures(tmp_path):
  """Returns make(**number by class) -> a folder of images, whose pixels are all the number of the image."""
  def make(where='pictures', **classes):
    for name, number in classes.items():
      folder = tmp_path / where / name
      folder.mkdir(parents=True)
      (folder / 'notes.txt').write_text('no image')
      for at in range(number):
        image = np.full((8 + at, 8, 3), 10 * at, np.uint8)
        (folder / f'{at}.png').write_bytes(pixels.encode(image))
    return str(tmp_path / where)
  return make


def test_a_folder_of_images_has_a_folder_for_each_class(pictures):
  cfg = config(task='folder', files=(pictures(cat=10, ant=10),), channels=3, shuffle=False)
  facts = pipeline.info(cfg)
  assert facts['num_images'] == dict(train=18, validation=2) and facts['vocab_size'] == 2
  batch = next(pipeline.train_iterator(cfg))
  assert batch['labels'][:, 0].tolist() == [0] * 8                   # ants come first
  np.testing.assert_allclose(batch['image'][3], 30 / 127.5 - 1, rtol=1e-6)
  [held_out] = pipeline.eval_batches(cfg)
  assert held_out['labels'][:2, 0].tolist() == [0, 1]
  both = pictures('both/train', b=2, a=1), pictures('both/valid', b=3)
  for files in (both, (both[0].removesuffix('/train'),)):
    cfg = config(task='folder', files=files, channels=3)
    assert pipeline.info(cfg)['num_images'] == dict(train=3, validation=3)
    assert list(pipeline.eval_batches(cfg))[0]['labels'][:3, 0].tolist() == [1] * 3


def test_a_class_may_be_called_as_a_split_and_what_is_hidden_is_no_image(pictures):
  folder = pictures(train=10, tram=10)
  pictures('pictures/tram/.checkpoints', copies=10)
  assert pipeline.info(config(task='folder', files=(folder,), channels=3))['num_images']['train'] == 18
  pictures('one/train', cat=10, ant=10)
  one = pictures('one', holdout=10)
  said = 'one/train holds folders, as of classes, and there is no folder validation or valid or val or test'
  with pytest.raises(errors.UserError, match=f'{said} beside; nearest: data.files=.*one/train'):
    pipeline.source(config(task='folder', files=(one,), channels=3))


def test_a_run_keeps_the_numbers_of_its_classes(pictures, tmp_path):
  cfg = config(task='folder', files=(pictures(ant=10, bee=10, cat=10),), channels=3)
  record.write(tmp_path, cfg, pipeline.source(cfg))
  cfg.data.files = (pictures('other', cat=20),)
  [held_out] = pipeline.eval_batches(cfg, opened=pipeline.source(cfg, tmp_path))
  assert held_out['labels'][:2, 0].tolist() == [2, 2]
  cfg.data.files = (pictures('unknown', cats=20),)
  with pytest.raises(errors.UserError, match="no class of training is called 'cats'; nearest: cat"):
    pipeline.source(cfg, tmp_path)


def test_wrong_folders_are_named(pictures, tmp_path):
  folder = pathlib.Path(pictures(ant=10, bee=10))
  for files, said in [((), 'reads one folder, or one for each split; it got 0'),
                      (('nowhere',), 'nowhere is no folder; task folder reads a folder with'),
                      ((str(folder / 'ant'),), 'no folder in it holds an image; wanted: a folder for each'),
                      ((str(folder), pictures('more', cat=1)), "more/cat: no class of training is called")]:
    with pytest.raises(errors.UserError, match=said):
      pipeline.source(config(task='folder', files=files, channels=3))
  (folder / 'cat').mkdir()
  with pytest.raises(errors.UserError, match=r'cat holds no image \(.png, .jpg, .jpeg\)'):
    pipeline.source(config(task='folder', files=(str(folder),), channels=3))
  (folder / 'cat' / 'a.jpg').write_text('hello')
  with pytest.raises(errors.UserError, match='a.jpg is not readable as an image: UnidentifiedImageError'):
    pipeline.source(config(task='folder', files=(str(folder),), channels=3))


def test_text_files_are_no_npz(tmp_path):
  (tmp_path / 'a.npz').write_text('hello')
  with pytest.raises(errors.UserError, match='not readable as .npz'):
    pipeline.train_iterator(config(task='npz', files=(str(tmp_path / 'a.npz'),)))


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_a_set_of_tensorflow_datasets_is_cached_by_another_process(file_format, tmp_path, monkeypatch):
  script = """
import sys, numpy as np, tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builders import adhoc_builder
image = lambda i: np.full((6, 9, 3), 20 * i, np.uint8)
rows = lambda n: [(i, dict(image=image(i), label=i % 3)) for i in range(n)]
features = tfds.features.FeaturesDict(dict(image=tfds.features.Image(shape=(None, None, 3)),
                                           label=tfds.features.ClassLabel(num_classes=3)))
adhoc_builder.AdhocBuilder(name='toy', version='1.0.0', features=features, data_dir=sys.argv[1],
                           split_datasets=dict(train=rows(10), test=rows(4)),
                           file_format=sys.argv[2]).download_and_prepare()
"""
  subprocess.run([sys.executable, '-c', script, str(tmp_path), file_format], check=True, capture_output=True)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  cfg = config(task='tfds:toy', channels=3, image_size=4, mean=0.0, std=1 / 255, shuffle=False,
               cache_dir=str(tmp_path / 'cache'))
  cfg.train.batch_size, cfg.eval.batch_size = 10, 4
  facts = pipeline.info(cfg)
  assert facts['vocab_size'] == 3 and facts['num_images'] == dict(train=10, validation=4)
  found = [(next(pipeline.train_iterator(cfg)), 10), (pipeline.eval_batches(cfg)[0], 4)]
  for batch, number in found:
    grey = np.rint(batch['image'].mean(axis=(1, 2, 3)) / 20).astype(int)
    assert sorted(grey) == list(range(number))                       # TensorFlow Datasets orders by hash
    assert batch['labels'][:, 0].tolist() == (grey % 3).tolist()
  cfg.data.task = 'tfds:toys'
  with pytest.raises(errors.UserError, match='tfds:toys: cannot read split .train. from .TFDS_DATA_DIR'):
    pipeline.train_iterator(cfg)
