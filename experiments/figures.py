"""Figures that several reports draw: a quantity against what was varied, or of each model; all seeds."""

import numpy as np

from stmoe.analysis import canvas


def curves(lines, x, y, title=None, log=False):
  """Returns a Figure with a line through the means and a band from the least to the largest of the seeds.

  Args:
    lines: dict label -> dict abscissa -> dict seed -> value.
    x, y:  axis labels.
    log:   whether the abscissa is logarithmic, base 2.
  """
  figure, axes = canvas.new(1, 1, 6.4, 4.0)
  ax, styles, handles = axes[0][0], canvas.styles(lines), {}
  for label, points in lines.items():
    groups = {at: [v for v in points[at].values() if v is not None] for at in sorted(points)}
    groups = {at: values for at, values in groups.items() if values}
    colour, dash = styles[label]
    handles[label], = ax.plot(list(groups), [np.mean(v) for v in groups.values()], dash, color=colour, lw=1.8,
                              marker='o', ms=4)
    ax.fill_between(list(groups), [min(v) for v in groups.values()], [max(v) for v in groups.values()],
                    color=colour, alpha=0.15, lw=0)
  if log:
    ax.set_xscale('log', base=2)
    canvas.engineering(ax.xaxis)
  canvas.label(ax, x, y, title)
  canvas.legend(figure, handles)
  return figure


def points(groups, x, title=None):
  """Returns a Figure with a row for each label: a dot for each seed, a bar at their mean.

  Args:
    groups: dict label -> dict seed -> value; the first is at the top.
    x:      axis label.
  """
  figure, axes = canvas.new(1, 1, 6.4, 1.2 + 0.4 * len(groups))
  ax = axes[0][0]
  for row, values in enumerate(groups.values()):
    values = [v for v in values.values() if v is not None]
    ax.plot(values, [row] * len(values), 'o', color=canvas.PALETTE[0], ms=5, alpha=0.7)
    if values:
      ax.plot([np.mean(values)], [row], '|', color=canvas.INK, ms=16, mew=2)
  ax.set_yticks(range(len(groups)), list(groups))
  ax.set_ylim(len(groups) - 0.5, -0.5)
  ax.grid(axis='x', color=canvas.GRID, linewidth=0.8)
  canvas.label(ax, x, title=title)
  return figure
