"""Do routers with a memory over depth, chained experts and unions of shards lower the loss at equal cost?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.depth import sweep
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  def better(claim, treated, control):
    return verdict.exceeds(claim, collect.values(results, treated), collect.values(results, control))
  return [
      better('RMoE better than top-2', 'rmoe', 'top_2'),
      better('RMoE better than with a state that is not passed', 'rmoe', 'rmoe_not_passing'),
      better('a state not passed better than one without gradient', 'rmoe_not_passing', 'rmoe_stopped'),
      better('Omni-router better than top-2', 'omni', 'top_2'),
      better('Omni-router better than a matrix for each layer', 'omni', 'omni_apart'),
      better('Chain of Experts better than top-2', 'chain', 'top_2'),
      better('Chain of Experts better than with one gate for both turns', 'chain', 'chain_one_gate'),
      better('top-2 better than a chain with one gate', 'top_2', 'chain_one_gate'),
      better('Union of Experts better than top-2', 'union', 'top_2'),
      better('Union of Experts with a trained gate better than with a frozen one', 'union_trained', 'union')]


def figures(results):
  """Returns the loss of every model."""
  groups = {name: collect.values(results, name) for name in sweep.MODELS}
  return dict(loss=drawing.points(groups, 'validation loss (nats per token)'))
