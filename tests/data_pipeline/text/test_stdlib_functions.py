"""Questions about functions: what is asked of a function, in which tasks, and what the choices are."""

import pytest

from stmoe import errors
from stmoe.data.text import tasks
from stmoe.data.text.families import stdlib_functions as functions

SOURCE = '''class A:

  def halve(self, x):
    """
    Return half of x.
    """
    y = x / 2
    return y

def top():
  if True:
    raise KeyError
x = 1
'''


@pytest.fixture
def asked(tmp_path):
  """The functions of a library of one file for training, and of files for validation."""
  for number in range(60):
    (tmp_path / f'm{number}.py').write_text(SOURCE + '#' * 200 if number == 0 else f'x = {number}\n' * 40)
  found = functions.functions(tmp_path)
  return found['train'] + found['validation']


def test_a_function_is_asked_about_in_every_task_that_it_can_be_asked_in(asked):
  halve, top = asked
  assert (halve.name, halve.parameters, top.name, top.parameters) == ('halve', 'self, x', 'top', '')
  assert halve.body == '  """\n  Return half of x.\n  """'             # out of its class, the first lines
  assert top.body == '  if True:\n    raise KeyError'                 # `x = 1` is no part of it
  assert functions.name(top) == ('name: def _():\n  if True:\n    raise KeyError', 'top')
  assert functions.parameters(halve)[1] == '(self, x)' and 'self' not in functions.parameters(halve)[0]
  assert functions.docstring(halve) == ('docstring: def halve(self, x)', 'Return half of x.')
  assert functions.keyword(top) == ('keyword:   if True:\n    _ KeyError', 'raise')
  assert functions.docstring(top) is None and functions.keyword(halve) is None


@pytest.mark.parametrize('name', functions.QUESTIONS)
def test_the_answer_is_among_choices_that_do_not_say_where(name):
  task = tasks.get(name)
  train, held = (task.examples(split) for split in tasks.SPLITS)
  assert len(train) > 1000 < 20 * len(held) and task.metrics == ('accuracy',) and task.paired
  assert all(e['targets'] in e['choices'] and e['choices'] == sorted({*e['choices']}) for e in held)
  places = {e['choices'].index(e['targets']) for e in held}
  assert len(places) > 2 and len({e['inputs'] for e in held[:50]}) > 40
  answers = {e['targets'] for e in held}
  assert all({*e['choices']} <= answers for e in held) or name in functions.FEW


def test_it_takes_no_files():
  with pytest.raises(errors.UserError, match='task stdlib_name reads none'):
    tasks.get('stdlib_name', ('x.jsonl',))
