"""The user's own text-to-text examples: jsonl with `inputs` and `targets` and, where they are known,
`references`, `choices`, `group`, `label`, `baseline` (see stmoe/data/text/examples.py)."""

from stmoe import errors
from stmoe.data.text import examples

FIELDS = ('inputs', 'targets', 'references', 'choices', 'group', 'label', 'baseline')


def convert(row):
  """Returns the example of an object that is an example already; other fields are left out."""
  return [examples.record(**{name: row[name] for name in FIELDS if name in row or name in FIELDS[:2]})]


def jsonl(files=()):
  """Returns the task of the user's `files`, judged by exact match unless data.metrics says otherwise."""
  if not files:
    raise errors.UserError('data.jsonl is empty: task jsonl needs --config.data.jsonl=FILE (or '
                           'TRAIN,VALIDATION) of objects with inputs and targets')
  return examples.Form('jsonl', convert, ('accuracy',)).task(files)


TASKS = dict(jsonl=jsonl)
