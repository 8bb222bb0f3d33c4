"""Tasks: where documents come from."""

import dataclasses
import platform

from stmoe import errors
from stmoe.data import corpus

SPLITS = ('train', 'validation')


@dataclasses.dataclass(frozen=True)
class Task:
  """A source of text documents.

  Attributes:
    name: what the configuration calls it.
    fingerprint: str, changes when the documents do; part of the cache's key.
    facts: what is stored with results, such as the Python version.
    documents: split -> iterator of str, in a fixed order.
    size: split -> UTF-8 bytes of all documents, or None where only reading them would tell.
  """
  name: str
  fingerprint: str
  facts: dict
  documents: callable
  size: callable


def stdlib(files=()):
  """Returns the task of the standard library of this Python (corpus.stdlib)."""
  del files
  return _local('stdlib', corpus.stdlib(), dict(python=platform.python_version()))


def text(files=()):
  """Returns the task of the user's own files (corpus.text)."""
  return _local('text', corpus.text(files), dict(files=[str(f) for f in files]))



TASKS = {'stdlib': stdlib, 'text': text}


def get(name, files=()):
  """Returns the Task called `name`; `files` are those of task text."""
  if name not in TASKS:
    raise errors.UserError(f'data.task: no task is called {name!r}{errors.nearest(name, TASKS)} '
                           f'(there are: {", ".join(TASKS)})')
  return TASKS[name](files)


def _local(name, documents, facts):
  def read(split):
    return (content for _, content in documents[split])

  def size(split):
    return sum(len(content.encode()) for content in read(split))
  return Task(name, corpus.digest(documents), facts, read, size)
