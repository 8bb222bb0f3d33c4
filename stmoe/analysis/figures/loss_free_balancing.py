"""Selection biases and the balance that they keep: loss-free balancing, DeepSeek-V3."""

from stmoe.analysis import canvas
from stmoe.runs import read as runs_lib

STEM = 'selection_bias'
CAPTIONS = {STEM: 'Selection biases of the experts and imbalance of their load over training. Left: the bias '
                  'of every expert of a layer, a line each. Right: MaxVio, the largest load over the mean '
                  'load minus 1, of each logged batch (0 is balanced); points: over the validation set, mean '
                  'of all layers.'}
ROWS = 4                               # layers drawn, first to last


def draw(run):
  """Returns {stem: Figure} of the layers with a state called bias; {} when there is none."""
  biases = {layer: series for layer, states in run.states.items() for path, series in states.items()
            if path.rpartition('.')[2] == 'bias'}
  if not biases:
    return {}
  shown = _spread(list(biases), ROWS)
  figure, axes = canvas.new(len(shown), 2, 9.6, 0.6 + 2.4 * len(shown))
  for row, layer in zip(axes, shown):
    steps, bias = biases[layer]                                      # [n], [n, E]
    for e in range(bias.shape[1]):
      row[0].plot(steps, bias[:, e], color=canvas.PALETTE[e % len(canvas.PALETTE)], lw=0.9, alpha=0.8)
    row[0].axhline(0, color=canvas.FAINT, lw=0.9, ls=(0, (1, 2)), zorder=0)
    row[1].plot(*run.series(f'moe/{layer}/max_vio'), color=canvas.PALETTE[0], lw=1.2)
    row[1].plot(*run.series('eval/max_vio'), 'o', color=canvas.PALETTE[1], ms=4)
    row[1].set_ylim(bottom=0)
    canvas.label(row[0], y='bias', title=layer)
    canvas.label(row[1], y='MaxVio')
    for ax in row:
      ax.set_xlim(left=0)
      canvas.engineering(ax.xaxis)
  for ax in axes[-1]:
    canvas.label(ax, runs_lib.ABSCISSAE['step'])
  return {STEM: figure}


def _spread(names, most):
  """At most `most` of `names`, evenly from the first to the last."""
  if len(names) <= most:
    return names
  return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]
