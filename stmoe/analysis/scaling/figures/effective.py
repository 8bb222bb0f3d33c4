"""Effective parameter counts: the dense model that is as good as a sparse model."""

from matplotlib import ticker
import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis.scaling import figures

STEM, MOST = 'effective_parameters', 6
CAPTIONS = {STEM: 'Left: the size of the dense model of equal predicted loss against the size of the model '
                  'without its experts, a line for each number of experts, over the sizes that were run. '
                  'Right: their ratio; where it falls to 1, experts no longer help.'}


def draw(study):
  """Returns {stem: Figure} of laws that define `equivalent`; {} of others."""
  if not hasattr(study.law, 'equivalent'):
    return {}
  sizes = np.geomspace(study.table['n_dense'].min(), study.table['n_dense'].max(), 100)
  chosen = figures.spread(study.table['experts'], MOST)
  shades, handles = figures.shades(chosen), {}
  figure, axes = canvas.new(1, 2, 9.6, 4.0)
  for experts in chosen:
    table = dict(n_dense=sizes, experts=np.full_like(sizes, experts))
    dense = study.law.equivalent(study.fit.coefficients, table)
    name = f'{experts:g} expert{"s" if experts > 1 else ""}'
    handles[name], = axes[0, 0].plot(sizes, dense, color=shades[experts], lw=1.6)
    axes[0, 1].plot(sizes, dense / sizes, color=shades[experts], lw=1.6)
  for ax in axes[0]:
    ax.set_xscale('log')
    ax.set_yscale('log')
    canvas.engineering(ax.xaxis)
  canvas.engineering(axes[0, 0].yaxis)
  for which in (axes[0, 1].yaxis.set_major_formatter, axes[0, 1].yaxis.set_minor_formatter):
    which(ticker.LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 1)))
  canvas.label(axes[0, 0], 'dense parameters', 'effective parameters')
  canvas.label(axes[0, 1], 'dense parameters', 'effective / dense')
  canvas.legend(figure, handles)
  return {STEM: figure}
