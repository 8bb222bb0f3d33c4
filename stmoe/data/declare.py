"""Our tasks as seqio Tasks. The only module of ours that imports seqio, and with it TensorFlow.

As a program, `python -m stmoe.data.declare TASK SPLIT N` writes the documents of a split to the open
file descriptor N, each as eight little-endian bytes of length and its UTF-8 bytes.
"""

import functools
import struct
import sys

import seqio
import tensorflow as tf

from stmoe.data import tasks
from stmoe.data import vocab


def add(task, vocabulary, name=None):
  """Registers `task` with seqio, as `name` or 'stmoe_<task>', and returns the seqio Task.

  Its feature 'targets' holds the ids of a document, with EOS: what our cache holds of it. A task of
  pairs has 'inputs' too.
  """
  names = ('inputs', 'targets') if task.paired else ('targets',)
  rekey = functools.partial(_rekey, dict(zip(names, task.features)))
  return seqio.TaskRegistry.add(
      name or f'stmoe_{task.name}',
      source=source(task),
      preprocessors=[rekey, seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder(),
                     seqio.preprocessors.append_eos_after_trim],
      output_features={name: seqio.Feature(convert(vocabulary), add_eos=True) for name in names})


def _rekey(names, dataset):
  """The dataset with the features that are the values of `names`, called by its keys, and no other."""
  return dataset.map(lambda example: {new: example[old] for new, old in names.items()},
                     num_parallel_calls=tf.data.AUTOTUNE)


def source(task):
  """Returns the seqio data source of a task, with its features; it never starts a download."""
  if task.tfds:
    return seqio.TfdsDataSource(task.tfds, splits=tasks.SPLITS, read_only=True)

  def read(split, shuffle_files, seed=None):
    texts = list(task.documents(split))
    width = len(task.features)
    dataset = tf.data.Dataset.from_tensor_slices({f: texts[i::width] for i, f in enumerate(task.features)})
    return dataset.shuffle(len(texts), seed) if shuffle_files else dataset
  counts = {split: sum(1 for _ in task.documents(split)) // len(task.features) for split in tasks.SPLITS}
  return seqio.FunctionDataSource(read, splits=tasks.SPLITS, num_input_examples=counts)


def convert(vocabulary):
  """Returns the seqio vocabulary that gives the same ids."""
  if isinstance(vocabulary, vocab.Bytes):
    return seqio.ByteVocabulary(vocabulary.extra_ids)
  return seqio.SentencePieceVocabulary(str(vocabulary.path), vocabulary.extra_ids)


def documents(task, split):
  """Gives the texts of a task's seqio source, in its order."""
  for example in source(task).get_dataset(split, shuffle=False).as_numpy_iterator():
    yield from (example[feature].decode() for feature in task.features)


def main(name, split, pipe):
  """Writes the documents of task `name` to the file descriptor `pipe`."""
  tf.config.set_visible_devices([], 'GPU')
  with open(int(pipe), 'wb') as out:
    for text in documents(tasks.get(name), split):
      text = text.encode()
      out.write(struct.pack('<q', len(text)) + text)


if __name__ == '__main__':
  main(*sys.argv[1:])
