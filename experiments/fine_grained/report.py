"""Do narrower experts, and a shared one, lower the loss at equal cost?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.fine_grained import sweep
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name)
  pairs = zip(sweep.GRAINS, sweep.GRAINS[1:])
  return [
      verdict.exceeds('a shared expert and one routed better than top-2', of(sweep.name(2)), of('top2')),
      *(verdict.exceeds(f'experts of 1/{b} better than of 1/{a}', of(sweep.name(b)), of(sweep.name(a)))
        for a, b in pairs),
      verdict.exceeds('experts of 1/4 with one shared better than top-2', of(sweep.name(4)), of('top2'))]


def figures(results):
  """Returns the loss of every model."""
  names = ('dense', 'top2', *map(sweep.name, sweep.GRAINS))
  groups = {name: collect.values(results, name) for name in names}
  return dict(loss=drawing.points(groups, 'validation loss (nats per token)'))
