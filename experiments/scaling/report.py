"""Does the law of routed language models hold here: do gains shrink with size, and does it predict?"""

import math

import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe.analysis import verdict
from stmoe.analysis.scaling import figures as law_figures
from stmoe.analysis.scaling import study
from stmoe.experiments.scaling import sweep
from stmoe.sweep import collect

WITHIN = 0.02                            # of the measured loss of the largest configuration


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda width, experts: collect.values(results, sweep.name(width, experts))
  widths = sorted({int(one.name.partition('_')[0][1:]) for one in results})
  gains = [verdict.exceeds(f'width {width}: 32 experts better than dense', of(width, 32), of(width, 1))
           for width in widths]
  return [*gains, *of_the_fit(results)]


def of_the_fit(results):
  """Returns the Verdicts on the fitted law, and on its prediction of the largest configuration."""
  shrink = 'c > 0: experts help less as the model grows'
  predicts = f'the largest is predicted within {WITHIN:.0%}'
  seeds = (len({one.seed for one in results}),) * 2
  try:
    fitted = fit(results)
  except errors.UserError as error:      # too few runs yet
    return [verdict.Verdict(claim, verdict.OPEN, math.nan, math.nan, math.nan, math.nan, seeds, str(error))
            for claim in (shrink, predicts)]
  low, _, middle, _, high = map(float, fitted.intervals['c'])
  spread = float(np.std(fitted.samples['c'], ddof=1))
  bilinear = verdict.Verdict(shrink, verdict.decide(low, high), middle, low, high, spread, seeds,
                             'bootstrap of the residuals, all runs')
  measured = fitted.table['loss'][fitted.held_out.rows]
  pairs = dict(enumerate(fitted.held_out.predicted)), dict(enumerate(measured))
  return [bilinear, verdict.alike(predicts, *pairs, margin=WITHIN * float(measured.mean()))]


def fit(results):
  """Returns the Study of Clark's law; the largest configuration is predicted by the others."""
  column = lambda key: np.array([float(one.row.get(key) or math.nan) for one in results])
  table = dict(n_dense=column('n_dense'), experts=column('experts'), loss=column('eval/loss'))
  good = np.isfinite(table['loss'])
  table = {key: values[good] for key, values in table.items()}
  return study.study('clark', lookup.module('law', 'clark'), table, hold_out=1, bootstrap=100)


def figures(results):
  """Returns the figures of the fit; none with too few runs."""
  try:
    return law_figures.draw(fit(results))
  except errors.UserError:
    return {}
