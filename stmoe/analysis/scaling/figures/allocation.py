"""How a law splits a budget of compute between model size and tokens."""

import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis.scaling import figures
from stmoe.analysis.scaling import optimum

STEM, POINTS, MOST, BEYOND = 'optimal_allocation', 25, 6, 10.0
CAPTIONS = {STEM: 'The best model size, its tokens and its predicted loss against the budget of training '
                  'compute, a line for each setting that was run. Grey: budgets beyond the largest run.'}


def draw(study):
  """Returns {stem: Figure} of laws of size and tokens; {} of others."""
  law = study.law
  if not hasattr(law, 'flops_per_token'):
    return {}
  spent = optimum.budgets(law, study.table)
  budgets = np.geomspace(spent.min(), spent.max() * BEYOND, POINTS)
  settings = optimum.settings(law, study.table, MOST)
  shades, handles = figures.shades(range(len(settings))), {}
  figure, axes = canvas.new(1, 3, 12.0, 3.9)
  for number, held in enumerate(settings):
    points = [optimum.best(law, study.fit.coefficients, budget, held) for budget in budgets]
    name = optimum.name(held)
    for ax, values in zip(axes[0], zip(*points)):
      line, = ax.plot(budgets, values, color=shades[number], lw=1.6)
    handles |= {name: line} if name else {}
  for ax, text in zip(axes[0], (f'best {law.SIZE}', 'best tokens', 'predicted loss (nats per token)')):
    ax.axvspan(spent.max(), budgets[-1], color=canvas.GRID, alpha=0.6, lw=0, zorder=0)
    ax.set_xscale('log')
    ax.set_xlim(budgets[0], budgets[-1])
    canvas.label(ax, 'training FLOPs', text)
  for ax in axes[0, :2]:
    ax.set_yscale('log')
    canvas.engineering(ax.yaxis)
  canvas.legend(figure, handles)
  return {STEM: figure}
