"""What every metric must do: numbers of examples and predictions, in whatever order they come."""

import math

from stmoe import lookup
from stmoe.data.text import examples

# A task of two classes, one whose answers are labelled (WSC), one of answers, and one of numbers.
_TASKS: list[list[dict]] = [
    [examples.record('q', text, choices=['no', 'yes'], group=str(number // 2))
     for number, text in enumerate(['yes', 'no', 'yes', 'no'])],
    [examples.record('q', text, group=text, label=text == 'red') for text in ('red', 'green', 'blue')],
    [examples.record('q', text, references=[f'the answer is {text}', text], group=text)
     for text in ('red', 'green', 'blue')],
    [examples.record('q', text, group=text) for text in ('1.0', '2.5', '4.0')]]
_OTHER = ValueError, LookupError, TypeError, ArithmeticError         # of examples of another kind of task


def gives_numbers(name: str) -> None:
  """Right predictions and wrong ones have finite numbers, under the same names."""
  score, names = lookup.module('metric', name).score, set()
  for task in _TASKS:
    right = [example['references'][0] for example in task]
    try:
      score(task, right)
    except _OTHER:
      continue
    for predictions in (right, right[1:] + right[:1], [''] * len(right)):
      values = score(task, predictions)
      assert isinstance(values, dict) and values, f'score returned {values!r}; wanted: dict name -> float'
      for key, value in values.items():
        assert math.isfinite(value), f'{key}={value}'
      names.add(tuple(sorted(values)))
  assert names, 'score can judge none of: two classes, labelled answers, answers, numbers'
  assert len(names) == 1, f'other predictions have other names: {names}'
