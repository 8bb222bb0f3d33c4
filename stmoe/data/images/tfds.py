"""Image sets of TensorFlow Datasets: read once, by a process of their own, into a cache of encoded images.

As a program, `python -m stmoe.data.images.tfds NAME SPLIT LABEL N` writes the images of a split to the open
file descriptor N: JSON of what is known of them, then for each its label, eight little-endian bytes, and the
bytes of its file. It alone imports TensorFlow, and never starts a download.
"""

import json
import re
import struct
import sys

from array_record.python import array_record_module

from stmoe import errors
from stmoe.data import bar as progress
from stmoe.data import store
from stmoe.data.images import pixels as images
from stmoe.data.text import cache as caches
from stmoe.data.text import stream
from stmoe.data.text import tasks

CONTENT = 1                              # of what keys stand for; checkpoints hold keys
READER = (sys.executable, '-m', 'stmoe.data.images.tfds')
# Our split -> what a set may call it; without any, the last tenth of its one split is held out.
SPLITS = {'train': ('train', 'full'), 'validation': ('validation', 'test')}
HELD_OUT = 10


class Records:
  """The pictures of one split in a cache; see `load` of data/sources/images.py."""

  def __init__(self, path, num_labels):
    self._reader = stream.Reader(path)
    self.num_labels = num_labels

  def __len__(self):
    return len(self._reader)

  def read(self, row):
    """Returns (uint8[H,W,C], label)."""
    record = self._reader[row]
    return images.decode(record[8:]), struct.unpack('<q', record[:8])[0]


def keep(name, label='', cache_dir=None):
  """Returns the `store.Kept` of the set called `name`, made if it is not there."""
  key = caches.digest(CONTENT, name, label)
  path = store.named(caches.folder(cache_dir), f'images-{re.sub(r"[^A-Za-z0-9.]+", "_", name)}', key)

  def write(folder):
    labels = [_write(folder / f'{split}.array_record', name, split, label) for split in tasks.SPLITS]
    return dict(name=name, key=key, num_labels=max(labels))
  return store.Kept(path, store.kept(path, write))


def load(path, facts):
  """Returns dict split -> Records of the cache at `path` with `facts`."""
  return {split: Records(path / f'{split}.array_record', facts['num_labels']) for split in tasks.SPLITS}


def _write(path, name, split, label):
  """Writes one split to `path`; returns the number of labels."""
  records = tasks.piped([*READER, name, split, label], f'data.task=tfds:{name}: cannot read split {split!r}',
                        'images of your own with --config.data.task=npz --config.data.files=FILE')
  facts = json.loads(next(records, b'{}'))
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  num_images = 0
  with progress.task(f'caching {name} {split}', facts.get('size'), 'images') as advance:
    for record in records:
      writer.write(record)
      advance(1)
      num_images += 1
  writer.close()
  if not num_images:
    raise errors.UserError(f'data.task=tfds:{name}: the split {split!r} holds no images')
  return facts['num_labels']


def source(known, split):
  """Returns the TFDS expression for our `split` of a set whose splits are `known`.

  >>> source(['train', 'test'], 'validation'), source(['full'], 'train'), source(['full'], 'validation')
  ('test', 'full[:90%]', 'full[90%:]')
  """
  names_by_split = {split_name: next((name for name in names if name in known), None)
                    for split_name, names in SPLITS.items()}
  if names_by_split['train'] is None:
    raise ValueError(f'no split called {" or ".join(SPLITS["train"])}, only {", ".join(known)}')
  if names_by_split['validation']:
    return names_by_split[split]
  train_percent = 100 - 100 // HELD_OUT
  return names_by_split['train'] + (f'[:{train_percent}%]' if split == 'train' else f'[{train_percent}%:]')


def main(name, split, label, pipe):
  """Writes the images of a split to the file descriptor `pipe`."""
  import tensorflow as tf
  import tensorflow_datasets as datasets
  tf.config.set_visible_devices([], 'GPU')
  builder = datasets.builder(name)
  tfds_split = source(list(builder.info.splits), split)
  label = label or next(name for name in ('label', 'labels') if name in builder.info.features)
  facts = dict(num_labels=int(builder.info.features[label].num_classes),
               size=int(builder.info.splits[tfds_split].num_examples))
  encoded = dict(split=tfds_split, decoders=dict(image=datasets.decode.SkipDecoding()))
  if builder.info.file_format.value == 'array_record':               # of which tf.data reads none
    examples = builder.as_data_source(**encoded)
  else:
    examples = builder.as_dataset(**encoded).as_numpy_iterator()
  with open(int(pipe), 'wb') as out:
    write = lambda record: out.write(struct.pack('<q', len(record)) + record)
    write(json.dumps(facts).encode())
    for example in examples:
      write(struct.pack('<q', int(example[label])) + bytes(example['image']))


if __name__ == '__main__':
  main(*sys.argv[1:])
