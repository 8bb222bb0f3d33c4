"""Fits the law of Clark et al. to the runs, and says whether experts help, where, and as predicted."""

import numpy as np

from stmoe.analysis import verdict
from stmoe.analysis.scaling import figures as drawings
from stmoe.analysis.scaling import fit
from stmoe.analysis.scaling import study as studies
from stmoe.analysis.scaling import summary
from stmoe.analysis.scaling.laws import clark

# As published for S-BASE: 32 experts say too little about e_max, and seeds too much about e_start.
FIXED = {name: clark.PUBLISHED['s_base'][name] for name in ('e_start', 'e_max')}
MARGIN = 0.01                              # of the loss, within which a prediction counts as right


def table(results):
  """Returns dict column -> f64[R]: n_dense, experts, loss in nats, seed; without runs that diverged."""
  finite = [run for run in results if run.row['eval/loss'] is not None]
  if len(finite) < len(results):
    print(f'note: {len(results) - len(finite)} runs diverged; no law has room for them')
  headings = dict(n_dense='n_dense', experts='experts', loss='eval/loss', seed='seed')
  return {name: np.array([float(run.row[heading]) for run in finite]) for name, heading in headings.items()}


def fitted(runs):
  """Returns the Study of a table of runs, the largest size held out with all its numbers of experts."""
  runs = {column: runs[column] for column in (*clark.COLUMNS, 'loss')}
  models, largest = len(set(fit.configurations(clark, runs))), runs['n_dense'] == runs['n_dense'].max()
  num_held = len(set(runs['experts'][largest]))
  if models - num_held < fit.needed(clark, FIXED):
    num_held = 1
  return studies.study('clark', clark, runs, hold_out=num_held, fixed=FIXED)


def report(results):
  """Returns the verdicts on the three claims of README.md."""
  runs = table(results)
  study = fitted(runs)
  print('\n'.join(summary.lines(study)))
  return [*(helps(runs, n) for n in (runs['n_dense'].min(), runs['n_dense'].max())), shrinks(study),
          predicts(study)]


def helps(runs, n):
  """Returns the Verdict: at size n, the most experts have a lower loss than the dense model."""
  most = runs['experts'].max()
  pick = lambda experts: {seed: loss for size, number, loss, seed in zip(
      runs['n_dense'], runs['experts'], runs['loss'], runs['seed']) if size == n and number == experts}
  claim = f'{most:g} experts have a lower loss than none, at {n:,.0f} parameters (nats per token)'
  return verdict.exceeds(claim, pick(most), pick(1))


def shrinks(study):
  """Returns the Verdict: c > 0, by its bootstrap interval."""
  low, high = (float(study.intervals['c'][end]) for end in (0, -1))
  spread = float(np.std(study.samples['c'], ddof=1))
  return verdict.Verdict('experts help less in larger models: c > 0', verdict.decide(low, high),
                         study.fit.coefficients['c'], low, high, spread, (len(study.table['loss']),),
                         'bootstrap of residuals; seeds are all runs')


def predicts(study):
  """Returns the Verdict: the law of the smaller models predicts the logarithm of the loss of the largest."""
  held = study.held_out
  experts, loss = study.table['experts'][held.rows], study.table['loss'][held.rows]
  means = lambda values: {e: float(np.log(values[experts == e]).mean()) for e in sorted(set(experts))}
  return verdict.alike('the law of the smaller models predicts the largest one (logarithm of the loss; pairs '
                       'are numbers of experts)', means(held.predicted), means(loss), MARGIN)


def figures(results):
  """Returns dict stem -> Figure of the fit."""
  return drawings.draw(fitted(table(results)))
