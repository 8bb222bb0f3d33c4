"""Whether a run is right as often as it is sure, on the choices of task files (`stmoe eval --tasks`)."""

from stmoe.analysis import canvas
from stmoe.runs import records

STEM = 'calibration'
CAPTIONS = {STEM: 'Calibration on tasks with choices (BIG-bench). Points are the share of right answers '
                  'among examples of like confidence, the probability of the likeliest choice by '
                  'sums of log-probabilities (`score`, not `per byte`). Bars are one '
                  'standard error; areas grow with the number of examples. On the diagonal a model is right '
                  'as often as it says. Equally likely choices share their point.'}


def draw(run):
  """Returns {stem: Figure} with points for each number of shots; {} for a run without such scores."""
  found = records.calibration(run.path)
  if not found:
    return {}
  figure, axes = canvas.new(1, 1, 4.8, 4.4)
  ax, handles = axes[0, 0], {}
  ax.plot([0, 1], [0, 1], color=canvas.FAINT, lw=0.9, ls=(0, (1, 2)), zorder=0)
  most = max(count for bins in found.values() for count, *_ in bins)
  for colour, (shots, bins) in zip(canvas.PALETTE, sorted(found.items())):
    filled = [(count, right / count, confidence / count) for count, right, confidence in bins if count]
    counts, accuracy, sure = map(list, zip(*filled))
    error = [(p * (1 - p) / count) ** 0.5 for count, p in zip(counts, accuracy)]
    ax.errorbar(sure, accuracy, error, color=colour, lw=1.2, alpha=0.7, fmt='none')
    handles[f'{shots} shots'] = ax.scatter(sure, accuracy, [12 + 90 * n / most for n in counts], color=colour)
  ax.set_xlim(0, 1.02)
  ax.set_ylim(0, 1.02)
  canvas.label(ax, 'confidence', 'right answers')
  canvas.legend(figure, handles)
  return {STEM: figure}
