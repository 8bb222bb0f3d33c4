"""Questions, contexts and answers from files in SQuAD's format, and a small set made of the standard library.

A file is JSON: {"data": [{"paragraphs": [{"context": TEXT, "qas": [{"id": ID, "question": TEXT, "answers":
[{"text": TEXT, "answer_start": CHARACTER}, ...]}, ...]}, ...]}, ...]}, also compressed (.gz). Each file is a
domain, called like it without `.json`.
"""

import dataclasses
import pathlib
import re

from stmoe import errors
from stmoe.data import given
from stmoe.data.text import corpus

_FUNCTION = re.compile(r'^ *def (\w+)\(([^()\n]+)\):\n +[rR]?"""([^\n"]*[^\s"])', re.MULTILINE)
AROUND = (120, 240)                # characters of source before and after a function's first line


@dataclasses.dataclass(frozen=True)
class Question:
  """A question, its context, the accepted answers, and the character where the first answer starts."""
  name: str
  question: str
  context: str
  answers: tuple
  start: int


def read(path):
  """Returns the Questions of a file; UserError without SQuAD's fields, or if a context lacks its answer."""
  articles = given.json(path, 'data.files')
  try:
    questions = [_question(qa, paragraph['context']) for article in articles['data']
             for paragraph in article['paragraphs'] for qa in paragraph['qas']]
  except KeyError as error:
    raise errors.UserError(f'data.files: {path} is not in the format of SQuAD: a field {error} is '
                           'missing') from error
  except (ValueError, TypeError, AttributeError) as error:
    why = str(error) if type(error) is ValueError else 'a field has another type'
    raise errors.UserError(f'data.files: {path} is not in the format of SQuAD: {why}') from error
  if not questions:
    raise errors.UserError(f'data.files: {path} holds no question')
  return questions


def _question(qa, context):
  name, answers = str(qa['id']), qa.get('answers')
  if not answers:
    raise ValueError(f'question {name!r} has no answer, and questions without one are not supported')
  for answer in answers:
    text, start = answer['text'], answer['answer_start']
    if type(start) is not int or start < 0:
      raise ValueError(f'answer_start={start!r} of question {name!r} is no place of a character')
    if not text.strip() or context[start:start + len(text)] != text:
      raise ValueError(f'the answer {text!r} of question {name!r} is not in the context at character {start}')
  return Question(name, qa['question'].strip(), context, tuple(a['text'] for a in answers),
                  answers[0]['answer_start'])


def of_files(files):
  """Returns dict split -> dict domain -> list of Questions of data.files = TRAIN, VALIDATION.

  TRAIN and VALIDATION are each a file, several files joined by `+`, or a folder. Of a folder the files called
  *.json, *.json.gz or without an ending are taken.
  """
  if len(files) != 2:
    raise errors.UserError('data.files: task squad needs TRAIN,VALIDATION, each a file, FILE+FILE or a '
                           f'folder; it got {len(files)}')
  by_split = {}
  for split, text in zip(('train', 'validation'), files):
    listed = paths(str(text))
    names = [path.name.removesuffix('.gz').removesuffix('.json') for path in listed]
    for name in names:
      if names.count(name) > 1:
        raise errors.UserError(f'data.files: two files of {split} are called {name}; rename one')
    by_split[split] = {name: read(path) for name, path in zip(names, listed)}
  return by_split


def paths(text):
  """Returns the paths of the files that `text` names: a file, several joined by `+`, or a folder's files."""
  whole = pathlib.Path(text)
  if whole.is_dir():
    inside = sorted(p for p in whole.iterdir() if p.is_file() and not p.name.startswith('.')
                   and (not p.suffix or p.name.removesuffix('.gz').endswith('.json')))
    if not inside:
      raise errors.UserError(f'data.files: no file *.json in the folder {text}')
    return inside
  return [whole] if whole.exists() else [pathlib.Path(part) for part in text.split('+')]


def of_stdlib():
  """Returns what `of_files` does, for two domains made of the standard library of this Python.

  arguments: what the parentheses of a function hold; docstring: the first line in its quotes. The context is
  the source around; the question names the function.
  """
  by_split = {}
  for split, documents in corpus.stdlib().items():
    by_split[split] = dict(arguments=[], docstring=[])
    for file, text in documents:
      for match in _FUNCTION.finditer(text):
        begin = max(match.start() - AROUND[0], 0)
        context = text[begin:match.end() + AROUND[1]]
        for group, (domain, questions) in zip((2, 3), by_split[split].items()):
          questions.append(Question(f'{file}:{match.start()}', f'{domain} of {match.group(1)}?', context,
                                    (match.group(group),), match.start(group) - begin))
  return by_split


def stdlib_questions(files):
  """Returns `of_stdlib`; it takes no files."""
  if files:
    raise errors.UserError('data.files is set, but task stdlib_questions reads none; use data.task=squad')
  return of_stdlib()


TASKS = {'squad': of_files, 'stdlib_questions': stdlib_questions}
