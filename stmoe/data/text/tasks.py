"""Tasks: where documents come from. Each is declared once, in a family (families), and is also a seqio Task
(declare.py).

The documents of a task of pairs are source, target, source, target, ... Data of TensorFlow Datasets are read
through seqio, in a process of its own: no process of ours that trains imports TensorFlow. Files are read by
plain Python.
"""

import dataclasses
import importlib.util
import inspect
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

from stmoe import errors
from stmoe import lookup
from stmoe.data.text import corpus

SPLITS = ('train', 'validation')
OWN_FILES = ('text', 'pairs')             # tasks that read data.files
PAIR = ('inputs', 'targets')             # features of a task of pairs that is no set with names of its own
ABSENT = 'could not find data in'         # how TensorFlow Datasets says that a set is absent
READER = (sys.executable, '-m', 'stmoe.data.text.declare')
READ_WITH = ('seqio', 'tensorflow_datasets')                          # the packages of the extra `seqio`


@dataclasses.dataclass(frozen=True)
class Task:
  """A source of text documents.

  Attributes:
    name: what the configuration calls it.
    fingerprint: str, changes when the documents do; part of the cache's key.
    facts: what is stored with results, such as the Python version.
    documents: split -> iterator of str, in a fixed order.
    size: split -> UTF-8 bytes of all documents, or None where only reading them would tell.
    tfds: name in TensorFlow Datasets, or '' for documents of plain Python.
    features: of an example, a document each: one, or source and target.
    metrics: names of modules of stmoe/metrics that judge predictions of the targets.
    examples: split -> iterator of the records (see examples.py) of a task of pairs.
    form: the examples.Form that it was made of, or None.
    since: (place, count) -> iterator of the training documents from a place on (data/large/corpora.py); None
      where that is not known.
  """
  name: str
  fingerprint: str
  facts: dict
  documents: callable
  size: callable
  tfds: str = ''
  features: tuple = ('text',)
  metrics: tuple = ()
  examples: callable = None
  form: object = None
  since: callable = None

  @property
  def paired(self):
    """Returns whether documents are source and target in turn."""
    return len(self.features) == 2


def known():
  """Returns dict name -> function of the user's files -> Task, of all families and plugins."""
  modules = [lookup.module('tasks', name) for name in lookup.available('tasks')]
  return {name: make for module in modules for name, make in module.TASKS.items()}


def get(name, files=(), metrics=(), **reading):
  """Returns the Task called `name`; `files` are the user's, `metrics` replace the task's own.

  reading: how files are read, `field` and `documents` of sources/texts.py; '' = as their format says.
  """
  if name not in known():
    raise errors.UserError(f'data.task: no task is called {name!r}{errors.nearest(name, known())} '
                           f'(there are: {", ".join(known())}; a file of your own is named by --plugin FILE)')
  reading = {field: value for field, value in reading.items() if value}
  taken = inspect.signature(known()[name]).parameters
  if other := next((field for field in reading if field not in taken), None):
    raise errors.UserError(f'data.{other}={reading[other]!r} says how files of text are read, but task '
                           f'{name} has a format of its own; nearest: data.task=text')
  task = known()[name](files, **reading)
  for metric in metrics:
    lookup.module('metric', metric)
  return dataclasses.replace(task, metrics=tuple(metrics)) if metrics else task


def no_files(name, files):
  """Raises UserError if the user gave files to a task that takes none."""
  if files:
    raise errors.UserError(f'data.files (or data.jsonl) is set, but task {name} reads none; nearest: '
                           'data.task=text, pairs, or jsonl for text-to-text examples')


def local(name, documents, facts, features=('text',)):
  """Returns the Task of a corpus (see corpus.py)."""
  def read(split):
    return (content for _, content in documents[split])

  def size(split):
    return sum(len(content.encode()) for content in read(split))
  if len(features) == 2:
    facts = facts | dict(paired=True)
  return _with_pairs(Task(name, corpus.digest(documents), facts, read, size, features=features))


def from_tfds(name, tfds, features=('text',)):
  """Returns the Task of `features` of a set of TensorFlow Datasets."""
  pair = dict(paired=True) if len(features) == 2 else {}
  instead = ('pairs of your own with --config.data.task=pairs --config.data.files=SOURCE,TARGET' if pair else
             'text of your own with --config.data.task=text --config.data.files=FILE')
  read = lambda split: _piped(name, split, instead)
  key = f'{tfds} {features}' if pair else tfds
  return _with_pairs(Task(name, key, dict(tfds=tfds) | pair, read, lambda split: None, tfds, features))


def _with_pairs(task):
  """`task` with the records of its pairs, to be judged as translations."""
  def examples(split):
    documents = task.documents(split)
    for number, (source, target) in enumerate(zip(documents, documents)):
      yield dict(inputs=source, targets=target, references=[target], choices=[], group=str(number),
                 baseline=source)
  return dataclasses.replace(task, metrics=('bleu',), examples=examples) if task.paired else task


def _piped(name, split, instead):
  """Gives the documents of a task that seqio reads, from a process that imports it."""
  records = piped([*READER, name, split], f'task {name}: seqio cannot read split {split!r}', instead)
  return (record.decode() for record in records)


def piped_examples(name, split):
  """Gives the examples of a task of TensorFlow Datasets, from a process that imports it."""
  instead = 'its released files with --config.data.jsonl=TRAIN,VALIDATION, or a folder of them'
  return map(json.loads, _piped(name, split, instead))


def piped(command, failure, instead):
  """Gives the records, bytes, that a process of our own writes; its last line is why it ended badly.

  Args:
    command: words of the command; the file descriptor to write to is added. A record is eight
      little-endian bytes of length, then the bytes themselves.
    failure: how the message begins, for a command that reads TensorFlow Datasets.
    instead: what can be given where the set is not there.

  Errors: UserError without the extra `seqio`, at once; from the first record on, where the set is absent and
  where the process ended badly.
  """
  missing = [package for package in READ_WITH if not importlib.util.find_spec(package)]
  if missing:
    raise errors.UserError(f'{failure}: not installed: {", ".join(missing)}; pip install "stmoe[seqio]", or '
                           f'give {instead}')
  return _records(command, failure, instead)


def _records(command, failure, instead):
  """The records of `piped`."""
  root = str(pathlib.Path(__file__).resolve().parents[3])
  env = dict(os.environ, JAX_PLATFORMS='cpu', CUDA_VISIBLE_DEVICES='', TF_CPP_MIN_LOG_LEVEL='3',
             PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')])))
  read_end, write_end = os.pipe()
  with tempfile.TemporaryFile() as printed, open(read_end, 'rb') as pipe:
    reader = subprocess.Popen([*command, str(write_end)], stdout=printed, stderr=printed, env=env,
                              pass_fds=[write_end])
    os.close(write_end)
    try:
      while len(header := pipe.read(8)) == 8:                        # less: it was killed
        yield pipe.read(*struct.unpack('<q', header))
    except GeneratorExit:
      reader.kill()
      raise
    finally:
      reader.wait()
    if reader.returncode:
      printed.seek(0)
      lines = printed.read().decode(errors='replace').strip().splitlines() or ['no message']
      where = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
      if ABSENT in lines[-1]:
        raise errors.UserError(f'{failure} from $TFDS_DATA_DIR={where}: the set is not there, and nothing is '
                               f'downloaded by itself; prepare it with TensorFlow Datasets (tfds build), set '
                               f'TFDS_DATA_DIR to where it is, or give {instead}')
      raise errors.UserError(f'{failure} from $TFDS_DATA_DIR={where}: {lines[-1].strip()}')
