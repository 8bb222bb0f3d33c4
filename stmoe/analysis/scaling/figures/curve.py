"""Loss against the size, of laws of one size: the runs, the law, and where its bootstrap fits lie."""

from matplotlib import ticker
import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis.scaling import figures
from stmoe.analysis.scaling import study as studies

STEM = 'loss_by_size'
CAPTIONS = {STEM: 'Loss against the size of the law, both in logarithms: points are runs (hollow: held out), '
                  'the line is the law fitted to all runs. The band holds 95 % of its bootstrap fits, where '
                  'there are some.'}


def draw(study):
  """Returns {stem: Figure} of laws of one column; {} of others."""
  if len(study.law.COLUMNS) > 1:
    return {}
  column, = study.law.COLUMNS
  found, held_out = study.table[column], figures.held_rows(study)
  sizes = np.geomspace(found.min(), found.max(), 200)
  figure, axes = canvas.new(1, 1, 6.4, 4.2)
  ax, colour = axes[0, 0], canvas.PALETTE[0]
  if study.samples:
    fits = {name: values[:, None] for name, values in study.samples.items()}
    lines = study.law.predict(fits, {column: sizes})                 # [B, 200]
    tail = 50 * (1 - studies.LEVEL)
    ax.fill_between(sizes, *np.percentile(lines, [tail, 100 - tail], axis=0), color=colour, alpha=0.2, lw=0)
  ax.plot(sizes, study.law.predict(study.fit.coefficients, {column: sizes}), color=colour, lw=1.6)
  for rows, face in ((~held_out, colour), (held_out, 'white')):
    ax.plot(found[rows], study.table['loss'][rows], 'o', color=colour, ms=5, mfc=face)
  ax.set_xscale('log')
  ax.set_yscale('log')
  ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, place: figures.short(value)))
  ax.yaxis.set_major_locator(ticker.MaxNLocator(6))                  # losses span less than a decade
  ax.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  for axis in (ax.xaxis, ax.yaxis):
    axis.set_minor_locator(ticker.NullLocator())
  canvas.label(ax, study.headings.get(column, column), 'loss (nats per token)')
  return {STEM: figure}
