"""Is a model trained with a growing number of experts better with every expert more in evaluation?"""

from stmoe.analysis import verdict
from stmoe.experiments import figures as drawing
from stmoe.experiments.slimming import sweep
from stmoe.sweep import collect


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  ks = evaluated(results)
  if not ks:
    return [verdict.exceeds('better with every expert more', {}, {})]
  growing = [losses(results, 'linear_increase', k) for k in ks]
  last = {name: losses(results, name, ks[-1]) for name in (*sweep.SCHEDULES, *sweep.LEARNED)}
  steps = [verdict.exceeds(f'k = {b} better than k = {a}', high, low)
           for a, b, low, high in zip(ks, ks[1:], growing, growing[1:])]
  grown = last.pop('linear_increase')
  return [*steps, *(verdict.exceeds(f'growing k better than {name} at k = {ks[-1]}', grown, other)
                    for name, other in last.items()),
          verdict.exceeds('growing k better than dense', grown, collect.values(results, 'dense')),
          *(verdict.exceeds(f'{name} router: k = {sweep.TRAINED_K}, as trained, better than k = {ks[-1]}',
                            losses(results, name, sweep.TRAINED_K), last[name]) for name in sweep.LEARNED)]


def figures(results):
  """Returns the loss against the experts of evaluation, a line for each model with experts."""
  lines = {name: {k: losses(results, name, k) for k in evaluated(results)}
           for name in (*sweep.SCHEDULES, *sweep.LEARNED)}
  y = 'validation loss (nats per token)'
  return dict(loss=drawing.curves(lines, 'active experts in evaluation', y, log=True))


def evaluated(results):
  """Returns the numbers k of experts that models were evaluated with."""
  pairs = next((run.data.sweeps[sweep.FIELD] for run in results if sweep.FIELD in run.data.sweeps), [])
  return [value for value, _ in pairs]


def losses(results, name, k):
  """Returns dict seed -> loss of the models of this name, evaluated with k experts."""
  return collect.evaluated(results, name, sweep.FIELD, k)
