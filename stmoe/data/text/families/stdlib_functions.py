"""Questions about the functions of the standard library: four tasks with choices, which need no download.

Every function is asked about once in each task that it can be asked in. Wrong choices are answers to other
questions of the same split. The order is drawn, so that the first hundred are of all files. Files of
validation are those of the task stdlib: whoever trained on its training files has not seen them.
"""

import dataclasses
import functools
import platform
import random
import re

from stmoe.data.text import corpus
from stmoe.data.text import examples
from stmoe.data.text import tasks

CHOICES = 4
LINES = 3                                # of a body that are shown
KEYWORDS = ('assert', 'class', 'del', 'for', 'if', 'raise', 'return', 'while', 'with', 'yield')
# The indentation, the name, the parameters, and lines that are further in than the `def`.
_FUNCTION = re.compile(r'^( *)def (\w+)\(([^()\n]*)\):\n((?:\1 +\S.*\n|\n)+)', re.MULTILINE)
_DOCSTRING = re.compile(r'[rR]?"""\s*([^\n"]+)')
_STATEMENT = re.compile(rf'^( *)({"|".join(KEYWORDS)}) (.*)$', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Function:
  """A function: its name, its parameters as they are written, and the first lines of its body."""
  name: str
  parameters: str
  body: str


def name(function):
  """Returns (question, answer): the name of a function that is shown without it."""
  return f'name: def _({function.parameters}):\n{function.body}', function.name


def parameters(function):
  """Returns (question, answer): the parameters of a function that is shown without them."""
  return f'parameters: def {function.name}(_):\n{function.body}', f'({function.parameters})'


def docstring(function):
  """Returns (question, answer): the first line of the docstring; None for a function without one."""
  found = _DOCSTRING.match(function.body.strip())
  return found and (f'docstring: def {function.name}({function.parameters})', found[1].strip())


def keyword(function):
  """Returns (question, answer): the keyword that is hidden in the last statement shown that has one."""
  found = list(_STATEMENT.finditer(function.body))
  if not found:
    return None
  before, (indent, word, rest) = function.body[:found[-1].start()], found[-1].groups()
  return f'keyword: {before}{indent}_ {rest}', word


QUESTIONS = dict(stdlib_name=name, stdlib_parameters=parameters, stdlib_docstring=docstring,
                 stdlib_keyword=keyword)
FEW = dict(stdlib_keyword=KEYWORDS)      # the choices where they are always the same


@functools.cache
def functions(root=None):
  """Returns dict split -> list of the Functions of the corpus stdlib; `root` as there."""
  return {split: [Function(name, written, _shown(indent, body)) for _, text in documents
                  for indent, name, written, body in _FUNCTION.findall(text)]
          for split, documents in corpus.stdlib(root).items()}


def _shown(indent, body):
  """The first lines of a body that are not empty, as far to the left as those of no class."""
  lines = [line[len(indent):] for line in body.split('\n') if line.strip()]
  return '\n'.join(lines[:LINES])


def ask(task, asked):
  """Returns the examples of a task about a list of Functions; a question that was there is left out."""
  pairs = list(dict.fromkeys(filter(None, map(QUESTIONS[task], asked))))
  random.Random(task).shuffle(pairs)
  answers = sorted({answer for _, answer in pairs})
  return [examples.record(question, answer, choices=FEW.get(task) or _choices(answers, question, answer),
                          group=str(number)) for number, (question, answer) in enumerate(pairs)]


def _choices(answers, question, answer):
  """The answer among others, drawn by what is asked, in alphabetical order."""
  others = random.Random(question).sample(answers, min(CHOICES, len(answers)))
  return sorted([answer, *[other for other in others if other != answer][:CHOICES - 1]])


def _task(task, files=()):
  """Returns the task of questions about the functions of the standard library of this Python."""
  tasks.no_files(task, files)
  by_split = {split: ask(task, asked) for split, asked in functions().items()}
  documents = {split: [('', example[side]) for example in found for side in tasks.PAIR]
               for split, found in by_split.items()}
  local = tasks.local(task, documents, dict(python=platform.python_version()), tasks.PAIR)
  return dataclasses.replace(local, metrics=('accuracy',), examples=by_split.__getitem__)


TASKS = {task: functools.partial(_task, task) for task in QUESTIONS}
