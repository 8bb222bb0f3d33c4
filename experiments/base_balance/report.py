"""Does BASE balance without an auxiliary loss, at what price, and what is its shuffle for?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.base_balance import sweep
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name, metric='eval/loss': collect.values(results, name, metric)
  load = of('base', 'moe/max_load_ratio')
  even = {seed: 1.0 for seed in load}
  return [
      verdict.alike('each expert gets its equal share of every training batch', load, even, 1e-6),
      verdict.exceeds('better than dense at equal FLOPs', of('base'), of('dense')),
      verdict.exceeds('with shuffle tokens are nearer to their favourites', of('base', 'moe/assignment_gap'),
                      of('unshuffled', 'moe/assignment_gap')),
      verdict.exceeds('better with shuffle than without', of('base'), of('unshuffled'))]


def figures(results):
  """Returns the loss of every model."""
  groups = {name: collect.values(results, name) for name in sweep.MODELS}
  return dict(loss=drawing.points(groups, 'validation loss (nats per token)'))
