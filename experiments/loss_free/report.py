"""Do biases balance better than an auxiliary loss, at no price?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.loss_free import sweep
from stmoe.sweep import collect

BIAS, AUX = 'bias_0.001', 'aux_0.001'    # the strengths of the paper's main table


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name, metric='eval/loss': collect.values(results, name, metric)
  return [
      verdict.exceeds('biases: smaller MaxVio than the auxiliary loss', of(BIAS, 'eval/max_vio'),
                      of(AUX, 'eval/max_vio')),
      verdict.exceeds('biases: lower loss than the auxiliary loss', of(BIAS), of(AUX)),
      verdict.exceeds('a stronger auxiliary loss balances better', of('aux_0.01', 'eval/max_vio'),
                      of('aux_0.0001', 'eval/max_vio')),
      verdict.exceeds('a stronger auxiliary loss costs loss', of('aux_0.0001'), of('aux_0.01'))]


def figures(results):
  """Returns loss and MaxVio of every strategy."""
  names = [*(f'aux_{alpha}' for alpha in sweep.ALPHAS), *(f'bias_{rate}' for rate in sweep.RATES)]
  of = lambda metric: {name: collect.values(results, name, metric) for name in names}
  return dict(loss=drawing.points(of('eval/loss'), 'validation loss (nats per token)'),
              max_vio=drawing.points(of('eval/max_vio'), 'MaxVio in evaluation'))
