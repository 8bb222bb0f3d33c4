"""What balance costs a BASE layer: the affinity it gives up and the tokens it displaces."""

from stmoe.analysis import canvas
from stmoe.runs import read as runs_lib

STEM = 'assignment_gap'
CAPTIONS = {STEM: 'What balanced assignment costs (BASE layers) over training. Left: how far the total '
                  'affinity of tokens and experts is below that of every token with its favourite, a share '
                  'of how far a random assignment is below it (0 = all have their favourite). Right: the '
                  'share of tokens that did not get their favourite expert.'}
PANELS = {'assignment_gap': 'assignment gap', 'displaced_frac': 'displaced tokens (%)'}


def draw(run):
  """Returns {stem: Figure} with a line for each layer that reports its gap; {} when none does."""
  layers = run.layers('assignment_gap')
  if not layers:
    return {}
  figure, axes = canvas.new(1, len(PANELS), 9.6, 3.4)
  styles, handles = canvas.styles(layers), {}
  for ax, (metric, text) in zip(axes[0], PANELS.items()):
    for layer in layers:
      colour, dash = styles[layer]
      steps, value = run.series(f'moe/{layer}/{metric}')
      value = 100 * value if '%' in text else value
      handles[layer], = ax.plot(steps, value, dash, color=colour, lw=1.6)
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0)
    canvas.engineering(ax.xaxis)
    canvas.label(ax, runs_lib.ABSCISSAE['step'], text)
  canvas.legend(figure, handles)
  return {STEM: figure}
