"""Which expert decides which nodes, and whether the expert should: Mowst (arXiv:2311.05185)."""

import numpy as np

from stmoe.analysis import canvas
from stmoe.runs import read as runs_lib

STEM, TENTHS = 'confidence', 10
CAPTIONS = {STEM: 'Who decides which nodes (Mowst). Left: held-out nodes by the confidence of the weak '
                  'expert, which is how often it answers. Points: accuracy of both experts on these nodes; '
                  'larger points are of more nodes. The gate is right where the weak expert is the better '
                  'one at large confidence, and the strong expert at small. Right: accuracies over training.'}
LINES = {'eval/accuracy': 'together', 'eval/accuracy_weak': 'weak', 'eval/accuracy_strong': 'strong'}


def draw(run):
  """Returns {stem: Figure} of a run whose evaluation counts nodes by confidence; {} for other runs."""
  steps, _ = run.series('eval/confidence')
  nodes = np.array([_last(run, i, 'nodes', steps) for i in range(TENTHS)]) if len(steps) else np.zeros(TENTHS)
  if not np.nansum(nodes):
    return {}
  figure, axes = canvas.new(1, 2, 9.2, 3.4)
  by_confidence, over_steps = axes[0]
  middle = (np.arange(TENTHS) + 0.5) / TENTHS
  by_confidence.bar(middle, nodes * 100, 0.9 / TENTHS, color=canvas.GRID, label='nodes')
  styles = canvas.styles(LINES.values())
  for name in ('weak', 'strong'):
    right = [_last(run, i, name, steps) * 100 for i in range(TENTHS)]
    by_confidence.scatter(middle, right, 8 + 120 * np.nan_to_num(nodes), color=styles[name][0], zorder=3)
  handles = {'nodes': by_confidence.containers[0]}
  for metric, name in LINES.items():
    at, value = run.series(metric)
    handles[name], = over_steps.plot(at, value * 100, color=styles[name][0], lw=1.6)
  canvas.label(by_confidence, 'confidence of the weak expert', 'nodes, and accuracy on them (%)')
  canvas.label(over_steps, runs_lib.ABSCISSAE['step'], 'accuracy (%)')
  by_confidence.set_xlim(0, 1)
  over_steps.set_xlim(left=0)
  canvas.engineering(over_steps.xaxis)
  for ax in axes[0]:
    ax.set_ylim(0, 100)
  canvas.legend(figure, handles)
  return {STEM: figure}


def _last(run, tenth, name, evaluated):
  """The number of a tenth of the confidence in the last evaluation; NaN where no node was in that tenth."""
  steps, value = run.series(f'eval/tenth_{tenth}_{name}')
  return value[-1] if len(steps) and steps[-1] == evaluated[-1] else np.nan
