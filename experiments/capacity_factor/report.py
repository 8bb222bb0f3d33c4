"""Does capacity below what tokens need cost loss, in training and in evaluation, and above it nothing?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.capacity_factor import sweep
from stmoe.sweep import collect

# Nats per token, ST-MoE's and Switch's tables (README.md): the difference that counts as none.
SAME = 0.01


def report(results):
  """Returns the Verdicts on the three claims of README.md."""
  at = lambda trained, evaluated: losses(results, trained, evaluated)
  return [
      verdict.exceeds('trained at 1.25 better than at 0.75, evaluated at 2.0', at(1.25, 2.0), at(0.75, 2.0)),
      verdict.exceeds('trained at 1.25, evaluated at 2.0 better than at 1.25', at(1.25, 2.0), at(1.25, 1.25)),
      verdict.alike('trained at 1.25 like at 2.0, evaluated at 2.0', at(1.25, 2.0), at(2.0, 2.0), SAME)]


def figures(results):
  """Returns the loss against the capacity of evaluation, a line for each capacity of training."""
  lines = {f'trained at {trained}': {at: losses(results, trained, at) for at in sweep.FACTORS}
           for trained in sweep.FACTORS}
  shown = {label: line for label, line in lines.items() if any(line.values())}
  return dict(loss=drawing.curves(shown, 'capacity factor of evaluation', 'validation loss (nats per token)'))


def losses(results, trained, evaluated):
  """Returns dict seed -> loss of the models trained at capacity `trained` and evaluated at `evaluated`."""
  return collect.evaluated(results, sweep.name(trained), sweep.FIELD, (trained, evaluated))
