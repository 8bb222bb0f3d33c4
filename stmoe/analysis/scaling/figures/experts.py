"""Loss against the number of experts, a line for each size of the model."""

import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis.scaling import figures

STEM, MOST = 'loss_by_experts', 7
CAPTIONS = {STEM: 'Loss against the number of experts of a layer, a colour for each model; points are runs '
                  '(hollow: held out), lines the law fitted to all runs.'}


def draw(study):
  """Returns {stem: Figure} of laws of experts; {} of others."""
  if 'experts' not in study.law.COLUMNS:
    return {}
  size_columns = [column for column in study.law.COLUMNS if column != 'experts']
  models = list(zip(*(study.table[column] for column in size_columns)))
  chosen, held_out = figures.spread(models, MOST), figures.held_rows(study)
  shades = figures.shades(chosen)
  figure, axes = canvas.new(1, 1, 7.6, 4.4)
  ax, handles = axes[0, 0], {}
  experts = np.geomspace(1.0, study.table['experts'].max(), 200)
  for model in chosen:
    mine = np.array([m == model for m in models])
    line = {column: np.full_like(experts, value) for column, value in zip(size_columns, model)}
    loss = study.law.predict(study.fit.coefficients, dict(line, experts=experts))
    name = ', '.join(f'{figures.short(value)}{"" if column.startswith("n_") else " " + column}'
                     for column, value in zip(size_columns, model))
    handles[name], = ax.plot(experts, loss, color=shades[model], lw=1.6)
    for rows, face in ((mine & ~held_out, shades[model]), (mine & held_out, 'white')):
      points = study.table['experts'][rows], study.table['loss'][rows]
      ax.plot(*points, 'o', color=shades[model], ms=5, mfc=face)
  _powers_of_two(ax, study.table['experts'])
  canvas.label(ax, 'experts', 'loss (nats per token)')
  figure.legend(handles.values(), handles.keys(), loc='outside right upper', frameon=False, fontsize=9)
  return {STEM: figure}


def _powers_of_two(ax, experts):
  ax.set_xscale('log', base=2)
  ticks = figures.spread(experts, 10)
  ax.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
  ax.minorticks_off()
