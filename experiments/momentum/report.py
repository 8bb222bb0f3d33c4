"""Does momentum from sparse layer to sparse layer lower the loss?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.momentum import sweep
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name)
  return [verdict.exceeds('MomentumSMoE better than SMoE', of('momentum_smoe'), of('smoe')),
          verdict.exceeds('AdamSMoE better than MomentumSMoE', of('adam_smoe'), of('momentum_smoe'))]


def figures(results):
  """Returns the loss of every method."""
  groups = {method: collect.values(results, method) for method in sweep.METHODS}
  return dict(loss=drawing.points(groups, 'validation loss (nats per token)'))
