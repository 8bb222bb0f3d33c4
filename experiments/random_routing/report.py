"""Is gating worth anything, and is the consistency of two random passes?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.sweep import collect

NAMES = ('dense', 'switch', 'random', 'thor', 'dropout', 'r_drop')
SAME = 0.02                              # nats per token


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name)
  return [
      verdict.alike('random routing like Switch', of('random'), of('switch'), SAME),
      verdict.alike('random routing like dense', of('random'), of('dense'), SAME),
      verdict.exceeds('THOR better than random routing without consistency', of('thor'), of('random')),
      verdict.exceeds('THOR better than Switch', of('thor'), of('switch')),
      verdict.exceeds('THOR better than R-Drop, the consistency of a dense model', of('thor'), of('r_drop')),
      verdict.exceeds('R-Drop better than dropout alone', of('r_drop'), of('dropout'))]


def figures(results):
  """Returns the loss of every model."""
  groups = {name: collect.values(results, name) for name in NAMES}
  return dict(loss=drawing.points(groups, 'validation loss (nats per token)'))
