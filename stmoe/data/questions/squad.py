"""Questions, contexts and answers from files in SQuAD's format, and a small set made of the standard library.

A file is JSON: {"data": [{"paragraphs": [{"context": TEXT, "qas": [{"id": ID, "question": TEXT, "answers":
[{"text": TEXT, "answer_start": CHARACTER}, ...]}, ...]}, ...]}, ...]}, also compressed (.gz). Each file is a
domain, called like it without `.json`.
"""

import dataclasses
import hashlib
import pathlib
import re

from stmoe import errors
from stmoe.data import given
from stmoe.data.text import corpus

_FUNCTION = re.compile(r'^ *def (\w+)\(([^()\n]+)\):\n +[rR]?"""([^\n"]*[^\s"])', re.MULTILINE)
_CLASS = re.compile(r'^ *class (\w+)\(([^()\n]+)\):', re.MULTILINE)
_ASSIGNED = re.compile(r'^ *(\w{3,}) = ([^\n#]*[^\s\\([{,#])$', re.MULTILINE)
AROUND = (120, 240)                # characters of source before and after a function's first line
# Domains of the standard library: what a question asks for -> where it stands, the group that is the answer.
KINDS = {'arguments': (_FUNCTION, 2), 'docstring': (_FUNCTION, 3), 'bases': (_CLASS, 2),
         'value': (_ASSIGNED, 2)}
FAR = {'bases', 'value'}           # domains of which training shows FEW questions
FEW, ONE_IN = 127, 5               # as arXiv:2204.09598 has; one file in five is for validation
NEAR = (60, 120)                   # characters before and after, in these domains


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
        for group, (domain, questions) in zip((2, 3), by_split[split].items()):
          questions.append(_asked(file, text, domain, match, group, AROUND))
  return by_split


def of_stdlib_domains():
  """Returns what `of_files` does, for four domains of the standard library, two of them with FEW questions.

  arguments, docstring: as in `of_stdlib`. bases: what the parentheses of a class hold; value: what a line
  assigns to a name. Files are divided by their names. Questions are in order of the sha256 of their names;
  training has all of the first two domains, and the first FEW of the others.
  """
  by_split = {split: {domain: [] for domain in KINDS} for split in ('train', 'validation')}
  digest = lambda name: hashlib.sha256(name.encode()).hexdigest()
  for documents in corpus.stdlib().values():
    for file, text in documents:
      split = 'train' if int(digest(file)[8:16], 16) % ONE_IN else 'validation'
      for domain, (pattern, group) in KINDS.items():
        by_split[split][domain] += [_asked(file, text, domain, match, group, NEAR)
                                    for match in pattern.finditer(text)]
  return {split: {domain: sorted(group, key=lambda q: digest(q.name))[
      :FEW if split == 'train' and domain in FAR else None] for domain, group in domains.items()}
          for split, domains in by_split.items()}


def _asked(file, text, domain, match, group, around):
  """The Question about what `group` of a match in `text` holds; characters `around` are its context."""
  begin = max(match.start() - around[0], 0)
  return Question(f'{file}:{match.start()}', f'{domain} of {match.group(1)}?',
                  text[begin:match.end() + around[1]], (match.group(group),), match.start(group) - begin)


def stdlib_domains(files):
  """Returns `of_stdlib_domains`; it takes no files."""
  return _without(files, 'stdlib_domains', of_stdlib_domains)


def stdlib_questions(files):
  """Returns `of_stdlib`; it takes no files."""
  return _without(files, 'stdlib_questions', of_stdlib)


def _without(files, task, make):
  if files:
    raise errors.UserError(f'data.files is set, but task {task} reads none; use data.task=squad')
  return make()


TASKS = {'squad': of_files, 'stdlib_questions': stdlib_questions, 'stdlib_domains': stdlib_domains}
