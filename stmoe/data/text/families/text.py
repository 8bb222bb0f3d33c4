"""Plain text, for language modelling and span corruption."""

import platform

from stmoe.data.text import corpus
from stmoe.data.text import documents as reading
from stmoe.data.text import tasks


def stdlib(files=()):
  """Returns the task of the standard library of this Python (corpus.stdlib); it takes no files."""
  tasks.no_files('stdlib', files)
  return tasks.local('stdlib', corpus.stdlib(), dict(python=platform.python_version()))


def text(files=(), field='', documents=''):
  """Returns the task of the user's own files (corpus.text)."""
  listed = [name for names in reading.divided(files) for name in names] if files else []
  return tasks.local('text', corpus.text(files, field, documents), dict(files=listed))


def c4(files=()):
  """Returns the task C4/en (arXiv:1910.10683, section 2.2) of TensorFlow Datasets; it takes no files."""
  tasks.no_files('c4', files)
  return tasks.from_tfds('c4', 'c4/en:3.1.0')


TASKS = dict(stdlib=stdlib, text=text, c4=c4)
