"""Does it help to drop the least important tokens of a batch instead of the last tokens?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.batch_priority import sweep
from stmoe.sweep import collect

SAME = 0.01                              # a percent of accuracy


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  below = [factor for factor in sweep.FACTORS if factor < 1]
  better = lambda claim, of, factor: verdict.exceeds(
      f'{claim} {factor}', of(results, factor, True), of(results, factor, False), better='higher')
  return [*(better('priority better, trained and evaluated at capacity', alike, factor) for factor in below),
          *(better(f'priority better, trained at {sweep.SPARE}, evaluated at', evaluated, factor)
            for factor in below),
          verdict.alike(f'no difference at capacity {sweep.SPARE}', alike(results, sweep.SPARE, True),
                        alike(results, sweep.SPARE, False), SAME)]


def figures(results):
  """Returns the accuracy against capacity, of training and evaluation and of evaluation alone."""
  lines = lambda of: {label: {factor: of(results, factor, priority) for factor in sweep.FACTORS}
                      for label, priority in (('priority', True), ('position', False))}
  x, y = 'capacity factor', 'accuracy on held-out digits'
  return dict(accuracy=drawing.curves(lines(alike), x, y),
              evaluated=drawing.curves(lines(evaluated), f'{x} of evaluation, {sweep.SPARE} in training', y))


def alike(results, factor, priority):
  """Returns dict seed -> accuracy of the models trained and evaluated at a capacity."""
  return collect.values(results, sweep.name(factor, priority), 'eval/accuracy')


def evaluated(results, factor, priority):
  """Returns dict seed -> accuracy at a capacity of the models trained with capacity to spare."""
  if factor == sweep.SPARE:
    return alike(results, factor, priority)
  return collect.evaluated(results, sweep.name(sweep.SPARE, priority), sweep.FIELD, (sweep.SPARE, factor),
                           'eval/accuracy')
