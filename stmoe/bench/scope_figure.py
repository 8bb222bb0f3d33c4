"""The parts of a training step as a figure: bars beside those of the dense twin, and the floor as a mark."""

from stmoe.analysis import canvas
from stmoe.bench import scopes


def draw(rows, name):
  """Returns a Figure of the parts that `by_scope.measure` found; `name` is that of the experiment."""
  parts = [part for part in (*scopes.SCOPES, scopes.HOST) if any(row.get(part) for row in rows.values())]
  figure, axes = canvas.new(1, 1, 7.0, 1.2 + 0.32 * len(parts))
  ax, bars = axes[0][0], [column for column in ('step', 'dense') if column in rows]
  height, handles = 0.8 / len(bars), {}
  for i, column in enumerate(bars):
    total = sum(rows[column].values())
    places = [place - 0.4 + height * (i + 0.5) for place in range(len(parts))]
    label = f'{"step" if column == "step" else "dense twin"}, {total:.0f} ms'
    handles[label] = ax.barh(places, [rows[column].get(part, 0) for part in parts], 0.92 * height,
                             color=canvas.PALETTE[i])
  if 'floor' in rows:
    total, least = sum(rows['floor'].values()), [rows['floor'].get(part, 0) for part in parts]
    handles[f'floor, {total:.0f} ms'] = ax.scatter(least, range(len(parts)), marker='|', s=120,
                                                   color=canvas.INK, zorder=3)
  ax.set_yticks(range(len(parts)), parts)
  ax.invert_yaxis()
  ax.grid(axis='y', visible=False)
  canvas.label(ax, 'ms of a training step', None, name)
  canvas.legend(figure, handles)
  return figure
