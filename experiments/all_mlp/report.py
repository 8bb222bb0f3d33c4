"""Is the sparse all-MLP better than sparse Transformers of its FLOPs?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.all_mlp import sweep
from stmoe.sweep import collect

SAME = 0.02                              # nats per token


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name)
  return [
      verdict.alike('gMLP like the dense Transformer', of('gmlp'), of('dense'), SAME),
      verdict.exceeds('sparse all-MLP better than gMLP', of('smlp'), of('gmlp')),
      verdict.exceeds('sparse all-MLP better than Switch', of('smlp'), of('switch')),
      verdict.exceeds('sparse all-MLP better than GShard', of('smlp'), of('gshard'))]


def figures(results):
  """Returns the loss of every method."""
  groups = {method: collect.values(results, method) for method in sweep.METHODS}
  return dict(loss=drawing.points(groups, 'validation loss (nats per token)'))
