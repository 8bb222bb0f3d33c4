"""Loss against model size at equal training compute, and where it is least."""

import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis.scaling import figures
from stmoe.analysis.scaling import optimum

STEM, BUDGETS, PANELS = 'iso_flop', 5, 3
CAPTIONS = {STEM: 'Predicted loss against model size at equal training compute, a line for each budget from '
                  'the smallest to the largest run; dots: the best size. A panel for each of the settings '
                  'run, at most three.'}


def draw(study):
  """Returns {stem: Figure} of laws of size and tokens; {} of others."""
  law = study.law
  if not hasattr(law, 'flops_per_token'):
    return {}
  spent = optimum.budgets(law, study.table)
  budgets = np.geomspace(spent.min(), spent.max(), BUDGETS)
  shades, handles = figures.shades(budgets), {}
  settings = optimum.settings(law, study.table, PANELS)
  figure, axes = canvas.new(1, len(settings), 1.4 + 3.9 * len(settings), 4.0)
  for ax, held in zip(axes[0], settings):
    for budget in budgets:
      point = optimum.best(law, study.fit.coefficients, budget, held)
      sizes = point.n * np.geomspace(0.05, 20.0, 121)
      _, loss = optimum.iso_flop(law, study.fit.coefficients, budget, held, sizes)
      handles[f'{budget:.1e} FLOPs'], = ax.plot(sizes, loss, color=shades[budget], lw=1.6)
      ax.plot(point.n, point.loss, 'o', color=shades[budget], ms=6, mec='white')
    ax.set_xscale('log')
    canvas.engineering(ax.xaxis)
    text = 'predicted loss (nats per token)' if ax is axes[0, 0] else None
    canvas.label(ax, law.SIZE, text, optimum.name(held))
  _same_scale(axes[0])
  canvas.legend(figure, handles)
  return {STEM: figure}


def _same_scale(axes):
  low, high = (pick(ax.get_ylim()[end] for ax in axes) for pick, end in ((min, 0), (max, 1)))
  for ax in axes:
    ax.set_ylim(low, high)
