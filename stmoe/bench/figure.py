"""The rows of `stmoe bench` as a figure: time over the dense floor, a panel each for forward and training."""

from stmoe.analysis import canvas

TITLES = dict(forward='forward', train='forward and backward')


def draw(rows, device):
  """Returns a Figure of `bench.measure`'s rows: bars per shape and routing; the floor is the line at 1.

  Args:
    device: name of the device the rows were measured on.
  """
  places = list(dict.fromkeys((row['shape'], row['routing']) for row in rows))
  labels = list(dict.fromkeys(map(label, rows)))
  style = canvas.styles(labels)
  figure, axes = canvas.new(1, 2, max(7.0, 1.6 + 0.22 * len(rows)), 3.6)
  width, handles = 0.8 / len(labels), {}
  for ax, direction in zip(axes[0], ('forward', 'train')):
    for row in rows:
      name = label(row)
      x = places.index((row['shape'], row['routing'])) - 0.4 + width * (labels.index(name) + 0.5)
      handles[name] = ax.bar(x, row[direction]['ratio'], 0.92 * width, color=style[name][0])
    ax.axhline(1, color=canvas.INK, lw=1)
    ax.set_xticks(range(len(places)), [shape if routing == 'real' else f'{shape}\n{routing}'
                                       for shape, routing in places])
    canvas.label(ax, None, 'time over the dense floor' if direction == 'forward' else None,
                 f'{TITLES[direction]}, {device}' if direction == 'forward' else TITLES[direction])
  canvas.legend(figure, handles)
  return figure


def label(row):
  """Returns 'gather, 1.25' or 'blocks, dropless' of a row."""
  factor = row['capacity_factor']
  return f'{row["executor"]}, {factor or "dropless"}'
