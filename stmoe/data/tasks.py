"""Tasks: where documents come from. Each is declared once, here, and is also a seqio Task (declare.py).

The documents of a task of pairs are source, target, source, target, ... Those of `c4` and of WMT'14
come from TensorFlow Datasets through seqio, read in a process of its own, so that no process of ours that
trains imports TensorFlow; those of the others come from plain Python.
"""

import dataclasses
import functools
import os
import pathlib
import platform
import struct
import subprocess
import sys
import tempfile

from stmoe import errors
from stmoe.data import corpus

SPLITS = ('train', 'validation')
READER = (sys.executable, '-m', 'stmoe.data.declare')


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
  """
  name: str
  fingerprint: str
  facts: dict
  documents: callable
  size: callable
  tfds: str = ''
  features: tuple = ('text',)

  @property
  def paired(self):
    """Returns whether documents are source and target in turn."""
    return len(self.features) == 2


def stdlib(files=()):
  """Returns the task of the standard library of this Python (corpus.stdlib); it takes no files."""
  _none('stdlib', files)
  return _local('stdlib', corpus.stdlib(), dict(python=platform.python_version()))


def text(files=()):
  """Returns the task of the user's own files (corpus.text)."""
  return _local('text', corpus.text(files), dict(files=[str(f) for f in files]))


def stdlib_pairs(files=()):
  """Returns the task of docstring lines and `def` lines (corpus.stdlib_pairs); it takes no files."""
  _none('stdlib_pairs', files)
  return _local('stdlib_pairs', corpus.stdlib_pairs(), dict(python=platform.python_version()), PAIR)


def pairs(files=()):
  """Returns the task of the user's own pairs, such as translations (corpus.pairs)."""
  return _local('pairs', corpus.pairs(files), dict(files=[str(f) for f in files]), PAIR)


def c4(files=()):
  """Returns the task C4/en (arXiv:1910.10683, section 2.2) of TensorFlow Datasets; it takes no files."""
  _none('c4', files)
  name = 'c4/en:3.1.0'
  return Task('c4', name, dict(tfds=name), functools.partial(_piped, 'c4'), lambda split: None, name)


def wmt14_en_de(files=()):
  """Returns the task WMT'14 English to German of TensorFlow Datasets; it takes no files."""
  _none('wmt14_en_de', files)
  return _wmt('wmt14_en_de', 'wmt14_translate/de-en:1.0.0', ('en', 'de'))


def wmt14_en_fr(files=()):
  """Returns the task WMT'14 English to French of TensorFlow Datasets; it takes no files."""
  _none('wmt14_en_fr', files)
  return _wmt('wmt14_en_fr', 'wmt14_translate/fr-en:1.0.0', ('en', 'fr'))


PAIR = ('inputs', 'targets')
TASKS = {'stdlib': stdlib, 'text': text, 'stdlib_pairs': stdlib_pairs, 'pairs': pairs, 'c4': c4,
         'wmt14_en_de': wmt14_en_de, 'wmt14_en_fr': wmt14_en_fr}
OWN_FILES = ('text', 'pairs')


def get(name, files=()):
  """Returns the Task called `name`; `files` are those of the tasks OWN_FILES."""
  if name not in TASKS:
    raise errors.UserError(f'data.task: no task is called {name!r}{errors.nearest(name, TASKS)} '
                           f'(there are: {", ".join(TASKS)})')
  return TASKS[name](files)


def _none(name, files):
  if files:
    raise errors.UserError(f'data.files is set, but task {name} reads none; use data.task=text (or pairs)')


def _local(name, documents, facts, features=('text',)):
  def read(split):
    return (content for _, content in documents[split])

  def size(split):
    return sum(len(content.encode()) for content in read(split))
  if len(features) == 2:
    facts = facts | dict(paired=True)
  return Task(name, corpus.digest(documents), facts, read, size, features=features)


def _wmt(name, tfds, languages):
  return Task(name, f'{tfds} {languages}', dict(tfds=tfds, paired=True), functools.partial(_piped, name),
              lambda split: None, tfds, languages)


def _piped(name, split):
  """Gives the documents of a task that seqio reads, from a process that imports it."""
  for record in piped([*READER, name, split], f'task {name}: seqio cannot read split {split!r}'):
    yield record.decode()


def piped(command, failure):
  """Gives the records, bytes, that a process of our own writes; its last line is why it ended badly.

  Args:
    command: words of the command, to which the file descriptor to write to is added. A record is eight
      little-endian bytes of length, then itself.
    failure: how the message begins, for a command that reads TensorFlow Datasets.
  """
  root = str(pathlib.Path(__file__).resolve().parents[2])
  env = dict(os.environ, JAX_PLATFORMS='cpu', CUDA_VISIBLE_DEVICES='', TF_CPP_MIN_LOG_LEVEL='3',
             PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')])))
  ours, theirs = os.pipe()
  with tempfile.TemporaryFile() as said, open(ours, 'rb') as pipe:
    reader = subprocess.Popen([*command, str(theirs)], stdout=said, stderr=said, env=env, pass_fds=[theirs])
    os.close(theirs)
    try:
      while header := pipe.read(8):
        yield pipe.read(*struct.unpack('<q', header))
    except GeneratorExit:
      reader.kill()
      raise
    finally:
      reader.wait()
    if reader.returncode:
      said.seek(0)
      lines = said.read().decode(errors='replace').strip().splitlines() or ['no message']
      where = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
      raise errors.UserError(f'{failure} from $TFDS_DATA_DIR={where}: {lines[-1].strip()}')
