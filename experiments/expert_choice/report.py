"""Is it better that experts choose tokens than that tokens choose experts?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.expert_choice import sweep
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  chosen = collect.values(results, 'expert_choice')
  return [verdict.exceeds(f'expert choice better than {baseline}', chosen, collect.values(results, method))
          for method, baseline in (('switch', 'top-1'), ('gshard', 'top-2'), ('dense', 'dense'))]


def figures(results):
  """Returns the loss of every method."""
  groups = {method: collect.values(results, method) for method in sweep.METHODS}
  return dict(loss=drawing.points(groups, 'validation loss (nats per token)'))
