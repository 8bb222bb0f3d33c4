"""A checkpoint evaluated under several values of a field (`stmoe eval RUN --sweep FIELD=V1,V2`)."""

from stmoe.analysis import canvas
from stmoe.analysis import measures

CAPTIONS = {'sweep': 'The validation loss of one checkpoint, evaluated under several values of a field.'}


def draw(run):
  """Returns dict stem -> Figure: 'sweep', with axes for every field that was swept."""
  if not run.sweeps:
    return {}
  figure, axes = canvas.new(1, len(run.sweeps), 4.1 * len(run.sweeps), 3.4)
  colour = canvas.PALETTE[0]
  for ax, (field, points) in zip(axes[0], run.sweeps.items()):
    in_bits = all('eval/bits_per_byte' in metrics for _, metrics in points)
    key, unit = ('eval/bits_per_byte', 'bits per byte') if in_bits else ('eval/loss', measures.unit([run]))
    values = [value if number(value) else str(value) for value, _ in points]
    losses = [metrics[key] for _, metrics in points]
    ax.plot(values, losses, '-' if all(map(number, values)) else '', color=colour, lw=1.8, marker='o', ms=4)
    if all(map(number, values)) and len(values) < 9:
      ax.set_xticks(values)
    canvas.label(ax, field, f'validation loss ({unit})' if ax is axes[0, 0] else None)
  return {'sweep': figure}


def number(value):
  """Returns whether `value` has a place on an axis of numbers."""
  return isinstance(value, (int, float)) and not isinstance(value, bool)
