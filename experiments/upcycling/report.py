"""Is an upcycled model better than a dense model trained as long, and than a sparse model from scratch?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name)
  upcycled = of('upcycled')
  return [
      verdict.exceeds('upcycled better than dense, trained as long', upcycled, of('dense_more')),
      verdict.exceeds('upcycled better than scratch with the extra steps', upcycled, of('scratch_extra')),
      verdict.exceeds('scratch with all steps better than upcycled', of('scratch_more'), upcycled)]


def figures(results):
  """Returns the loss of every run."""
  names = ('dense', 'dense_more', 'upcycled', 'scratch_extra', 'scratch_more')
  groups = {name: collect.values(results, name) for name in names}
  return dict(loss=drawing.points(groups, 'validation loss (nats per byte)'))
