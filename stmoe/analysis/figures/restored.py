"""Restored images: what a model read, what it gave and what it should have given."""

from stmoe.analysis import canvas
from stmoe.analysis.figures import adversarial
from stmoe.runs import records

STEM = 'restored'
ROWS = dict(image='degraded', restored='restored', pixels='clean')
CAPTIONS = {STEM: 'Held-out images at the last evaluation: degraded, as the model restores them, and clean.'}


def draw(run):
  """Returns {stem: Figure} of a run whose target showed restored images; {} of others."""
  _, shown = records.shown(run.path)
  if 'restored' not in shown:
    return {}
  number = len(shown['image'])
  figure, axes = canvas.new(len(ROWS), number, 0.9 * number, 3.0)
  for row, (name, text) in zip(axes, ROWS.items()):
    for ax, image in zip(row, shown[name]):
      adversarial.picture(ax, image, vmin=0, vmax=1)
    canvas.label(row[0], y=text)
  return {STEM: figure}
