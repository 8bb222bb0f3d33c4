"""What every metric must do: numbers of examples and predictions, in whatever order they come."""

import math

from stmoe import lookup

# As a task of classes, of answers and of numbers has them: records of data/text/examples.py.
_EXAMPLES: list[list[dict]] = [
    [dict(references=[text], choices=['no', 'yes'], group=number // 2)
     for number, text in enumerate(['yes', 'no', 'yes', 'no'])],
    [dict(references=[f'the answer is {word}', word], choices=None, group=number)
     for number, word in enumerate(['red', 'green', 'blue'])],
    [dict(references=[text], choices=None, group=number)
     for number, text in enumerate(['1.0', '2.5', '4.0'])]]


def gives_numbers(name: str) -> None:
  """Right predictions and wrong ones have finite numbers, under the same names."""
  score, names, scored = lookup.module('metric', name).score, set(), 0
  for examples in _EXAMPLES:
    right = [example['references'][0] for example in examples]
    for predictions in (right, right[1:] + right[:1], [''] * len(right)):
      try:
        values = score(examples, predictions)
      except (ValueError, KeyError, TypeError):                      # examples of another kind of task
        continue
      assert isinstance(values, dict) and values, f'score returned {values!r}; wanted: dict name -> float'
      for key, value in values.items():
        assert math.isfinite(value), f'{key}={value}'
      scored += 1
      names.add(tuple(sorted(values)))
  assert scored, 'score can judge none of: two classes, answers, numbers'
  assert len(names) == 1, f'other predictions have other names: {names}'
