"""Figures that several reports draw: a quantity against what was varied, or of each model.

Thin lines join the values of a seed, whose runs share data and initialisation. The lines of all seeds show
how models compare where the spread between seeds says little.
"""

import numpy as np

from stmoe.analysis import canvas


def curves(lines, x, y, title=None, log=False):
  """Returns a Figure with a line through the means, and a thin line of each seed.

  Args:
    lines: dict label -> dict abscissa -> dict seed -> value; None stands for a value that is not finite.
    x, y:  axis labels.
    log:   whether the abscissa is logarithmic; a logarithmic abscissa is labelled at its values.
  """
  figure, axes = canvas.new(1, 1, 6.4, 4.0)
  ax, styles, handles = axes[0][0], canvas.styles(lines), {}
  for label, groups in lines.items():
    colour, dash = styles[label]
    for seed in sorted(set().union(*groups.values())):
      seed_points = [(at, groups[at][seed]) for at in sorted(groups) if groups[at].get(seed) is not None]
      _thin(ax, seed_points, colour)
    means = {at: values for at in sorted(groups) if (values := _there(groups[at]))}
    handles[label], = ax.plot(list(means), [np.mean(values) for values in means.values()], dash, color=colour,
                              lw=1.8, marker='o', ms=4)
  if log:
    at = sorted(set().union(*lines.values()))
    ax.set_xscale('log', base=2)
    ax.set_xticks(at, [f'{value:g}' for value in at])
  canvas.label(ax, x, y, title)
  canvas.legend(figure, handles)
  return figure


def points(groups, x, title=None):
  """Returns a Figure with a row for each label: a dot for each seed, a bar at the mean, thin lines between.

  Args:
    groups: dict label -> dict seed -> value; the first label is at the top.
    x:      axis label.
  """
  figure, axes = canvas.new(1, 1, 6.4, 1.2 + 0.4 * len(groups))
  ax = axes[0][0]
  for seed in sorted(set().union(*groups.values())):
    seed_points = [(v[seed], row) for row, v in enumerate(groups.values()) if v.get(seed) is not None]
    _thin(ax, seed_points, canvas.PALETTE[0])
  for row, values in enumerate(map(_there, groups.values())):
    ax.plot(values, [row] * len(values), 'o', color=canvas.PALETTE[0], ms=5, alpha=0.7)
    if values:
      ax.plot([np.mean(values)], [row], '|', color=canvas.INK, ms=16, mew=2)
  ax.set_yticks(range(len(groups)), list(groups))
  ax.set_ylim(len(groups) - 0.5, -0.5)
  ax.grid(axis='x', color=canvas.GRID, linewidth=0.8)
  canvas.label(ax, x, title=title)
  return figure


def _thin(ax, found, colour):
  """Draws a thin line through pairs of coordinates; no pairs, no line."""
  ax.plot(*zip(*found), color=colour, alpha=0.35, lw=0.8)


def _there(values):
  """Returns the finite values of the values of seeds."""
  return [value for value in values.values() if value is not None]
