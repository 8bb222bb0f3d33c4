"""Does it help to drop the least important tokens of a batch instead of the last ones?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.batch_priority import sweep
from stmoe.sweep import collect

SAME = 0.01                              # a percent of accuracy


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda factor, priority: collect.values(results, sweep.name(factor, priority), 'eval/accuracy')
  below = [verdict.exceeds(f'priority better at capacity {factor}', of(factor, True), of(factor, False),
                           better='higher') for factor in sweep.FACTORS if factor < 1]
  top = sweep.FACTORS[-1]
  return [*below, verdict.alike(f'no difference at capacity {top}', of(top, True), of(top, False), SAME)]


def figures(results):
  """Returns the accuracy against capacity."""
  of = lambda factor, priority: collect.values(results, sweep.name(factor, priority), 'eval/accuracy')
  lines = {label: {factor: of(factor, priority) for factor in sweep.FACTORS}
           for label, priority in (('priority', True), ('position', False))}
  return dict(accuracy=drawing.curves(lines, 'capacity factor', 'accuracy on held-out digits'))
