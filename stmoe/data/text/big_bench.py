"""Tasks of BIG-bench (arXiv:2206.04615) from their JSON files, and the prompts that its models read.

The files ask to be kept out of training: nothing here makes training data. Fields of a file and the draws of
examples and choices are those of the released package (`bigbench` 1.0.0).
"""

import dataclasses
import json
import pathlib
import re

import numpy as np

from stmoe import errors
from stmoe import files

NAME = 'task.json'                       # of a folder that is a task
SEED = 42                                # of every draw
REQUIRED = 'canary', 'name', 'description', 'keywords'
OF_EXAMPLES = 'examples', 'metrics', 'preferred_score'
# Fields of the format and their defaults.
FORMAT = dict(example_input_prefix='\nQ: ', example_output_prefix='\nA: ', choice_prefix='\n  choice: ',
              append_choices_to_input=True, task_prefix='', few_shot_example_separator='\n',
              output_regex=None, stop_string=None, absolute_normalization=False)
ANSWER = r'[^\.\?\!\;\n]+'               # output_regex of a task without that and without stop_string


@dataclasses.dataclass(frozen=True)
class Example:
  """A question as the model reads it, the answers that count, and a score for each choice, if there are any.

  inputs:  with its prefixes and, unless the task says otherwise, the choices.
  targets: answers; without any in the file the first choice of the largest score.
  choices: dict choice -> target score, in the order of the file; {} where texts are written.
  number:  of its row in the file. row: as the file has it.
  """
  inputs: str
  targets: tuple[str, ...]
  choices: dict[str, float]
  number: int
  row: dict


@dataclasses.dataclass(frozen=True)
class Task:
  """A task: its examples, or its subtasks.

  metrics:   names of its scores; preferred: the score that counts; both empty of a task with subtasks.
  form:      dict of the fields of FORMAT.
  """
  name: str
  file: pathlib.Path
  examples: tuple[Example, ...]
  metrics: tuple[str, ...]
  preferred: str
  form: dict
  subtasks: tuple['Task', ...] = ()

  def parts(self) -> tuple['Task', ...]:
    """Returns its subtasks, or itself."""
    return self.subtasks or (self,)


def read(path: str | pathlib.Path) -> list[Task]:
  """Returns the tasks at `path`: a file, a folder with a task.json, or a folder of such files and folders.

  Raises UserError, naming file and key, for anything that is no task.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    return [_task(path)]
  if (path / NAME).is_file():
    return [_task(path / NAME)]
  found = sorted([*path.glob('*.json'), *path.glob(f'*/{NAME}')])
  if not found:
    raise errors.UserError(f'--tasks {path}: no task in it; a task is a .json file, or a folder with {NAME}')
  tasks = [_task(file) for file in found]
  names = [task.name for task in tasks]
  for task in tasks:
    if names.count(task.name) > 1:
      raise errors.UserError(f'{task.file}: another file of {path} has the name {task.name!r}, too')
  return tasks


def written(task: Task, text: str, max_length: int | None = None) -> str:
  """Returns what counts of a generated `text`: cut at the stop string, then the task's pattern, or ''.

  The stop string stays in the text, and does not count at its beginning.

  Args:
    max_length: most characters, before all else.
  """
  return postprocessed(text, task.form['stop_string'], task.form['output_regex'], max_length)


def postprocessed(text: str, stop_string: str | None, output_regex: str | None,
                  max_length: int | None = None) -> str:
  """Returns `written` of a task with these fields.

  >>> postprocessed('a, b. c', None, ANSWER), postprocessed('7 cats;', ';', r'[0-9]+')
  ('a, b', '7')
  """
  text = text if max_length is None else text[:max_length]
  stop = stop_string or ''
  at = text.find(stop)                   # of '' it is 0
  text = text[:at + len(stop)] if at > 0 else text
  match = re.search(output_regex, text) if output_regex else None
  return text if not output_regex else match.group() if match else ''


def prompts(task: Task, shots: int = 0, most: int = 0, seed: int = SEED) -> list[tuple[str, Example]]:
  """Returns (the whole text that a model reads, its Example) of the queries of a task without subtasks.

  Before a query stand `shots` other examples with an answer each. All draws of a task are in one stream.

  Args:
    most: of the examples, which are then drawn; 0 = all, in their order.
  Raises:
    UserError: if there are not so many other examples.
  """
  rng = np.random.RandomState(seed)
  queries, found = np.arange(len(task.examples)), []
  if most:
    queries = rng.choice(queries, min(most, len(queries)), replace=False)
  for query in [task.examples[at] for at in queries]:
    others = [example for example in task.examples if example.row != query.row]
    if shots > len(others):
      raise errors.UserError(f'--shots {shots}: {task.file} has {len(others)} examples besides the one that '
                             f'is asked; nearest: {len(others)}')
    before = [others[at] for at in rng.choice(len(others), shots, replace=False)] if shots else []
    parts = [example.inputs + str(rng.choice(example.targets)) for example in before]
    context = task.form['few_shot_example_separator'].join([*parts, query.inputs])
    found.append((task.form['task_prefix'] + context, query))
  return found


def _task(file, folder=True):
  """The Task in a file; in a `folder` of its own it may have subtasks."""
  fields = files.read_json(file)
  for key in REQUIRED:
    _require(file, fields, key)
  _must(file, 'name', fields['name'], isinstance(fields['name'], str) and fields['name'], 'a text')
  form = _form(file, fields)
  inside = sorted(file.parent.glob(f'*/{NAME}')) if folder and file.name == NAME else []
  if 'examples' not in fields and inside:
    subtasks = tuple(_task(one, folder=False) for one in inside)
    return Task(fields['name'], file, (), (), '', form, subtasks)
  for key in OF_EXAMPLES:
    _require(file, fields, key)
  metrics, preferred = _metrics(file, fields['metrics'], fields['preferred_score'])
  examples = _examples(file, fields['examples'], form)
  return Task(fields['name'], file, examples, metrics, preferred, form)


def _require(where, fields, key):
  if key not in fields:
    raise errors.UserError(f'{where}: key {key!r} is missing{errors.nearest(key, fields)}')


def _must(where, key, value, holds, wanted):
  if not holds:
    raise errors.UserError(f'{where}: key {key!r} is {str(value)[:60]!r}; wanted: {wanted}')


def _form(file, fields):
  """The fields of FORMAT."""
  form = FORMAT | {key: fields[key] for key in FORMAT if key in fields}
  for key, value in form.items():
    kind, free = (bool, 'true or false') if isinstance(FORMAT[key], bool) else (str, 'a text')
    _must(file, key, value, isinstance(value, kind) or value is FORMAT[key], free)
  if form['output_regex'] is form['stop_string'] is None:
    form['output_regex'] = ANSWER
  try:
    re.compile(form['output_regex'] or '')
  except re.error as error:
    raise errors.UserError(f"{file}: key 'output_regex' is no pattern: {error}") from None
  return form


def _metrics(file, metrics, preferred):
  """(names of metrics, the preferred one); 'rouge' stands for three."""
  _must(file, 'metrics', metrics, isinstance(metrics, list) and metrics and all(
      isinstance(name, str) for name in metrics), 'a list of names')
  three = ('rouge1', 'rouge2', 'rougeLsum')
  _must(file, 'preferred_score', preferred, isinstance(preferred, str) and preferred != 'rouge',
        f'the name of one metric, such as {", ".join(three)}')
  names = [name for given in metrics for name in (three if given == 'rouge' else (given,))]
  return tuple(dict.fromkeys([*names, preferred])), preferred


def _examples(file, rows, form):
  _must(file, 'examples', rows, isinstance(rows, list) and rows, 'a list of objects')
  seen, examples = set(), []
  for number, row in enumerate(rows):
    text = json.dumps(row)
    if text not in seen:                 # the same row again is left out
      seen.add(text)
      examples.append(_example(f'{file}: examples[{number}]', row, form, number))
  return tuple(examples)


def _example(where, row, form, number):
  """The Example of a row."""
  if not isinstance(row, dict):
    raise errors.UserError(f'{where} is no object')
  choices, targets = _right(where, row)
  inputs = row['input']
  if choices and form['append_choices_to_input']:
    order = np.random.RandomState(SEED).permutation(sorted(choices))
    inputs += ''.join(form['choice_prefix'] + choice for choice in order)
  targets = targets or [max(choices, key=choices.get)]               # the first of the largest
  return Example(form['example_input_prefix'] + inputs + form['example_output_prefix'], tuple(targets),
                 {choice: float(score) for choice, score in choices.items()}, number, row)


def _right(where, row):
  """(target_scores, list of targets) of a row, {} or [] where the row has none of them."""
  _require(where, row, 'input')
  if not {'target', 'target_scores'} & set(row):
    raise errors.UserError(f"{where}: keys 'target' and 'target_scores' are missing; one says what is right"
                           f'{errors.nearest("target", row)}')
  choices, targets = row.get('target_scores', {}), row.get('target', [])
  targets = [targets] if isinstance(targets, str) else targets
  scored = isinstance(choices, dict) and all(isinstance(score, int | float) for score in choices.values())
  _must(where, 'input', row['input'], isinstance(row['input'], str), 'a text')
  _must(where, 'target_scores', choices, scored and (
      'target_scores' not in row or sum(choices.values()) > 0), 'choices and scores, one above 0')
  _must(where, 'target', targets, isinstance(targets, list) and all(isinstance(t, str) for t in targets) and (
      targets or choices), 'a text, or a list of texts')
  for text in targets if choices else ():
    if text not in choices:
      raise errors.UserError(f'{where}: target {text!r} is none of its choices'
                             f'{errors.nearest(text, choices) or f"; nearest: {next(iter(choices))}"}')
  return choices, targets
