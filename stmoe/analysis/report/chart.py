"""Losses of runs as a chart to explore: values at the pointer, runs on and off, logarithms, smoothing.

page.js draws; what it draws stands in an attribute of the page.
"""

import json

import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis import curves
from stmoe.analysis import measures
from stmoe.analysis.report import page

MOST = 400                               # points of a curve
DASHES = {'-': '', '--': '7 3', ':': '2 3', '-.': '7 3 2 3'}         # of matplotlib -> of SVG
AXES = {'step': 'steps', 'tokens': 'tokens', 'flops': 'active training FLOPs', 'time': 'seconds of training'}


def losses(runs, labels, caption):
  """Returns the HTML of the chart of the losses of Runs.

  labels: a label per run; runs of equal label share a colour, and are switched together.
  """
  key, unit = curves.measure(runs)
  colours = canvas.styles(labels)
  axes = {x: text for x, text in AXES.items() if all(len(run.series(key, x)[0]) for run in runs)}
  series = [_series(run, label if labels.count(label) == 1 else run.name, label, colours[label], key, axes)
            for run, label in zip(runs, labels)]
  data = dict(title=caption, unit=f'loss ({unit})' if unit else 'loss', axes=axes or {'step': AXES['step']},
              smoothing=8, series=series)
  return (f'<figure><div data-chart="{page.esc(json.dumps(data))}"></div>'
          f'<figcaption>{page.esc(caption)}</figcaption></figure>')


def _series(run, name, label, style, key, axes):
  """What page.js draws of a Run."""
  colour, dash = style
  return dict(label=label, name=name, colour=colour, dash=DASHES[dash], eval=_curve(run, key, axes),
              train=_curve(run, measures.first(run, 'loss/'), axes, curves.bits_ratio(run, key)))


def _curve(run, key, axes, ratio=1.0):
  """dict(x: dict axis -> n numbers, y: n numbers) of a metric of a Run, at most MOST points."""
  columns = {x: run.series(key, x) for x in axes or ('step',)}
  ys = next(iter(columns.values()))[1] * ratio
  finite = np.isfinite(ys)
  places = np.flatnonzero(finite)
  if len(places) > MOST:
    places = places[np.linspace(0, len(places) - 1, MOST).round().astype(int)]
  rounded = lambda values: [float(f'{value:.6g}') for value in values[places]]
  return dict(x={x: rounded(xs) for x, (xs, _) in columns.items()}, y=rounded(ys))
