"""Shows which experiments exist, what one of them takes, or which routers, layers, tasks, ... there are.

stmoe list                                 every experiment, with the first line of its docstring
stmoe list switch capacity                 those that have all words in their name or line
stmoe list lm/quickstart                   one of them: its docstring, its arguments and their defaults
stmoe list routers                         also: layers, experts, executors, tasks, families, strategies, ...
stmoe list routers sigmoid                 those with a word
"""

import ast
import inspect
import pathlib

from stmoe import errors
from stmoe import experiment
from stmoe import explained
from stmoe import lookup
from stmoe.plugins import kinds

KINDS = {plural: kind for kind, plural in kinds.PLURALS.items()}
TASKS = 'tasks'


def add_arguments(parser):
  parser.add_argument('words', nargs='*', metavar='WORD',
                      help=f'words, the name of an experiment, or one of {", ".join(KINDS)}')


def run(args):
  words = args.words
  if words and words[0] in KINDS:
    _print(_modules(words[0]), words[1:], words[0])
    return
  experiments = experiment.available()
  if len(words) == 1 and words[0] in experiments:
    print('\n'.join(_one(words[0])))
    return
  _print(experiments, words, 'experiment')


def _modules(plural):
  """dict name -> its line, of all modules of a kind, wrappers included, or of all tasks."""
  if plural == TASKS:
    return dict(sorted(_tasks()))
  kind = KINDS[plural]
  return {name: explained.line(kind, name)
          for name in sorted({*lookup.available(kind), *lookup.wrappers(kind)} - {'wrappers'})}


def _tasks():
  """Yields (name, line) of every task: what its function says, or the file of tasks that are made alike."""
  for file in lookup.available(TASKS):
    makers = lookup.module(TASKS, file).TASKS
    said = {name: inspect.getdoc(make) or '' for name, make in makers.items()}
    own = len(set(said.values())) == len(said)
    for name, text in said.items():
      line = text.partition('\n')[0].removeprefix('Returns ')
      yield name, line[:1].upper() + line[1:] if own else explained.line(TASKS, file)


def _print(lines, words, what):
  """Prints the names and lines that have all words; raises UserError if none has."""
  has = lambda name, line: all(word.lower() in f'{name} {line}'.lower() for word in words)
  matching = {name: line for name, line in lines.items() if has(name, line)}
  if not matching:
    asked = ' '.join(words)
    told = f'; stmoe show {asked!r} says what the word means' if explained.word(asked) else ''
    names = [*lines, *KINDS] if what == 'experiment' else lines
    raise errors.UserError(f'no {what} has {asked!r} in its name or line'
                           f'{told or errors.nearest(asked, names)}')
  width = max(map(len, matching))
  for name, line in matching.items():
    print(f'{name:{width}}  {line}'.rstrip())


def _one(name):
  """Lines on an experiment: its docstring, its arguments, and what `stmoe compare` trains of it."""
  path = pathlib.Path(experiment.folder() / f'{name}.py')
  yield name
  yield ''
  yield ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
  yield ''
  taken = experiment.arguments(name)
  yield f'arguments, as in {name}:{_example(taken)}' if taken else 'it declares no arguments'
  width = max(map(len, taken), default=0)
  for argument, default in taken.items():
    kind = f'{type(default).__name__}, default {default!r}'
    yield f'  {argument:{width}}  {"switched on by its name" if isinstance(default, bool) else kind}'


def _example(taken):
  """Two arguments as somebody types them."""
  return ','.join(name if isinstance(value, bool) else f'{name}={value}'
                  for name, value in list(taken.items())[:2])
