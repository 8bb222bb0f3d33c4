"""How well a law describes its runs: predicted against measured, and what is left over."""

import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis.scaling import figures

STEM = 'fit'
CAPTIONS = {STEM: 'Left: the loss that the law predicts against the loss measured, a point a run; runs that '
                  'were held out are predicted by a fit to the others. Right: predicted over measured less '
                  '1, by the size of the run (smallest to largest).'}


def draw(study):
  """Returns {stem: Figure} of every study."""
  loss, held_out = study.table['loss'], figures.held_rows(study)
  predicted = loss * np.exp(study.fit.residuals)
  if study.held_out:
    predicted[held_out] = study.held_out.predicted
  figure, axes = canvas.new(1, 2, 9.2, 3.7)
  left, right = axes[0]
  rank = np.argsort(np.argsort(study.law.size(study.table), kind='stable'))
  handles = {}
  for rows, name, colour, mark in ((~held_out, 'fitted', canvas.PALETTE[0], 'o'),
                                   (held_out, 'held out', canvas.PALETTE[1], 'D')):
    if rows.any():
      style = dict(color=colour, ms=5, mec='white', mew=0.5)
      handles[name], = left.plot(loss[rows], predicted[rows], mark, **style)
      right.plot(rank[rows] + 1, 100 * (predicted / loss - 1)[rows], mark, **style)
  ends = [min(loss.min(), predicted.min()), max(loss.max(), predicted.max())]
  left.plot(ends, ends, color=canvas.FAINT, lw=0.9, ls=(0, (1, 2)), zorder=0)
  right.axhline(0, color=canvas.FAINT, lw=0.9, ls=(0, (1, 2)), zorder=0)
  canvas.label(left, 'measured loss (nats per token)', 'predicted loss')
  canvas.label(right, 'run, by size', 'predicted / measured - 1 (%)')
  canvas.legend(figure, handles)
  return {STEM: figure}
