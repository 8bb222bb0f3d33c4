"""Adaptive balance coefficients of Skywork-MoE and the drop rates that move them."""

from stmoe.analysis import canvas
from stmoe.runs import read as runs_lib

STEM = 'adaptive_coefficients'
CAPTIONS = {STEM: 'Adaptive balance coefficients (Skywork-MoE) over training. Left: the coefficient of every '
                  'sparse layer. Right: the share of its token choices over capacity, which it follows.'}


def draw(run):
  """Returns {stem: Figure} of the layers that log a coefficient alpha; {} when there is none."""
  layers = run.layers('alpha')
  if not layers:
    return {}
  figure, axes = canvas.new(1, 2, 9.2, 3.4)
  styles, handles = canvas.styles(layers), {}
  for layer in layers:
    colour, dash = styles[layer]
    for ax, metric in zip(axes[0], ('alpha', 'overflow_frac')):
      steps, value = run.series(f'moe/{layer}/{metric}')
      handles[layer], = ax.plot(steps, value * (100 if metric == 'overflow_frac' else 1), dash, color=colour,
                                lw=1.4)
  for ax, text in zip(axes[0], ('coefficient of the balance loss', 'choices over capacity (%)')):
    canvas.label(ax, runs_lib.ABSCISSAE['step'], text)
    canvas.engineering(ax.xaxis)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
  canvas.legend(figure, handles)
  return {STEM: figure}
