"""What every file of tasks must do, for the tasks that need no files of the user."""

import itertools

from stmoe import errors
from stmoe import lookup
from stmoe.data.text import tasks

SEEN = 200                               # documents of a split


def tasks_are_texts(name: str) -> None:
  """Documents of both splits are texts, in the same order each time, and some are there."""
  for title, task in _made(name):
    for split in tasks.SPLITS:
      first, again = (list(itertools.islice(task.documents(split), SEEN)) for _ in range(2))
      assert first, f'task {title} has no documents in split {split}'
      assert all(isinstance(text, str) for text in first), f'task {title}: a document is no text'
      assert first == again, f'task {title}: documents come in another order the second time'


def fingerprints_are_steady(name: str) -> None:
  """A task made twice has the same fingerprint, which keys its cache, and its name is that of its entry."""
  for (title, one), (_, other) in zip(_made(name), _made(name)):
    assert one.name == title, f'task {title} calls itself {one.name!r}'
    assert one.fingerprint and one.fingerprint == other.fingerprint, f'task {title}: {one.fingerprint!r}'


def pairs_are_pairs(name: str) -> None:
  """Documents of a task of pairs are source and target in turn, and its metrics exist."""
  for title, task in _made(name):
    for metric in task.metrics:
      lookup.check('metric', metric)
    if task.paired:
      count = sum(1 for _ in task.documents('validation'))
      assert count % 2 == 0, f'task {title} has {count} documents: wanted source and target of each pair'


def _made(name):
  """(name, Task) of every entry that needs no files and no set of TensorFlow Datasets."""
  for title, make in lookup.module('tasks', name).TASKS.items():
    try:
      task = make(())
    except errors.UserError:             # it is of the user's files
      continue
    if not task.tfds:
      yield title, task
