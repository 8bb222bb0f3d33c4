"""Our tasks as seqio Tasks. The only module of ours that imports seqio, and with it TensorFlow.

As a program, `python -m stmoe.data.text.declare TASK SPLIT N` writes the documents of a split to the open
file descriptor N. Of a task that is judged by metrics the program writes the examples as JSON instead. Each
text is written as eight little-endian bytes of length and its UTF-8 bytes.
"""

import functools
import json
import struct
import sys

import numpy as np
import seqio
import tensorflow as tf

from stmoe import errors
from stmoe import lookup
from stmoe.data.text import tasks
from stmoe.data.text import vocab


def add(task, vocabulary, name=None):
  """Registers `task` with seqio, as `name` or 'stmoe_<task>', and returns the seqio Task.

  Its feature 'targets' holds the ids of a document, with EOS, as our cache holds them. A task of
  pairs has 'inputs' too, and, where it is an `examples.Form`, its metrics.
  """
  if task.form:
    return _add_form(task, vocabulary, name)
  names = ('inputs', 'targets') if task.paired else ('targets',)
  rekey = functools.partial(_rekey, dict(zip(names, task.features)))
  return seqio.TaskRegistry.add(
      name or f'stmoe_{task.name}',
      source=source(task),
      preprocessors=[rekey, seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder(),
                     seqio.preprocessors.append_eos_after_trim],
      output_features={name: seqio.Feature(convert(vocabulary), add_eos=True) for name in names})


def _add_form(task, vocabulary, name):
  """Registers a task with metrics; its targets, for seqio's metrics, are our records."""
  def evaluated(metric):
    def metric_fn(targets, predictions):
      return lookup.module('metric', metric).score(targets, predictions)
    metric_fn.__name__ = metric
    return metric_fn

  return seqio.TaskRegistry.add(
      name or f'stmoe_{task.name}',
      source=seqio.FunctionDataSource(functools.partial(_read_form, task), splits=tasks.SPLITS),
      preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder(),
                     seqio.preprocessors.append_eos_after_trim],
      output_features={side: seqio.Feature(convert(vocabulary), add_eos=True) for side in tasks.PAIR},
      postprocess_fn=lambda text, example, is_target: json.loads(example['record']) if is_target else text,
      metric_fns=[evaluated(metric) for metric in task.metrics])


def _read_form(task, split, shuffle_files, seed=None):
  """The dataset of a split of a task with metrics: inputs, targets, and the whole example as JSON."""
  def generate():
    for example in (form_examples(task, split) if task.tfds else task.examples(split)):
      yield {side: example[side] for side in tasks.PAIR} | dict(record=json.dumps(example))
  text = tf.TensorSpec((), tf.string)
  dataset = tf.data.Dataset.from_generator(
      generate, output_signature=dict.fromkeys((*tasks.PAIR, 'record'), text))
  return dataset.shuffle(1000, seed) if shuffle_files else dataset


def form_examples(task, split):
  """Gives the examples of a task with metrics, from TensorFlow Datasets; it never starts a download."""
  splits = dict(zip(tasks.SPLITS, task.form.splits))
  rows = seqio.TfdsDataSource(task.tfds, splits=splits, read_only=True).get_dataset(split, shuffle=False)
  return task.form.examples(map(plain, rows.as_numpy_iterator()), split)


def plain(value):
  """Returns a row of TensorFlow Datasets with texts, numbers, lists and dicts only."""
  if isinstance(value, dict):
    return {key: plain(inner) for key, inner in value.items()}
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, (np.ndarray, tf.RaggedTensor)):
    return plain(value.tolist() if isinstance(value, np.ndarray) else value.to_list())
  if isinstance(value, list):
    return [plain(inner) for inner in value]
  return value.item() if isinstance(value, np.generic) else value


def _rekey(names, dataset):
  """The dataset with the features that are the values of `names`, called by its keys, and no others."""
  return dataset.map(lambda example: {new: example[old] for new, old in names.items()},
                     num_parallel_calls=tf.data.AUTOTUNE)


def source(task):
  """Returns the seqio data source of a task, with its features; opening never starts a download."""
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
  """Returns the seqio vocabulary that gives the same ids as `vocabulary`; UserError where seqio has none."""
  if isinstance(vocabulary, vocab.Bytes):
    return seqio.ByteVocabulary(vocabulary.extra_ids)
  if not isinstance(vocabulary, vocab.Pieces):
    raise errors.UserError(f'seqio reads no tokenizer.json ({vocabulary.path}); nearest: a SentencePiece '
                           'model')
  return seqio.SentencePieceVocabulary(str(vocabulary.path), vocabulary.extra_ids)


def documents(task, split):
  """Gives the texts of a task's seqio source, in its order."""
  for example in source(task).get_dataset(split, shuffle=False).as_numpy_iterator():
    yield from (example[feature].decode() for feature in task.features)


def main(name, split, pipe):
  """Writes the documents or examples of task `name` to the file descriptor `pipe`."""
  tf.config.set_visible_devices([], 'GPU')
  task = tasks.get(name)
  with open(int(pipe), 'wb') as out:
    for text in map(json.dumps, form_examples(task, split)) if task.form else documents(task, split):
      text = text.encode()
      out.write(struct.pack('<q', len(text)) + text)


if __name__ == '__main__':
  main(*sys.argv[1:])
