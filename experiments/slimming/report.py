"""Is a model trained with a growing number of experts better with every expert more in evaluation?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.slimming import sweep
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  ks = evaluated(results)
  growing = [losses(results, 'linear_increase', k) for k in ks]
  last = {name: losses(results, name, ks[-1]) for name in sweep.SCHEDULES}
  steps = [verdict.exceeds(f'k = {b} better than k = {a}', high, low)
           for a, b, low, high in zip(ks, ks[1:], growing, growing[1:])]
  grown = last['linear_increase']
  return [*steps, *(verdict.exceeds(f'growing k better than {name} at k = {ks[-1]}', grown, last[name])
                    for name in sweep.SCHEDULES[1:])]


def figures(results):
  """Returns the loss against the experts of evaluation, a line for each schedule of training."""
  lines = {name: {k: losses(results, name, k) for k in evaluated(results)} for name in sweep.SCHEDULES}
  y = 'validation loss (nats per token)'
  return dict(loss=drawing.curves(lines, 'active experts in evaluation', y, log=True))


def evaluated(results):
  """Returns the k that all models were evaluated at."""
  return [value for value, _ in results[0].data.sweeps[sweep.FIELD]]


def losses(results, name, k):
  """Returns dict seed -> loss of the models of a schedule, evaluated with k experts."""
  return collect.evaluated(results, name, sweep.FIELD, k)
