"""The norm of the momentum by depth: MomentumSMoE, AdamSMoE, Robust MomentumSMoE."""

import numpy as np

from stmoe.analysis import canvas
from stmoe.runs import read as runs_lib

METRIC, STEM = 'momentum_norm', 'momentum_norm'
CAPTIONS = {STEM: 'Root mean square of the momentum that the sparse layers carry along depth, mean over '
                  'tokens. Left: by depth, at the first and last logged step and three between. '
                  'Right: over training, a line a layer.'}
TIMES = 5


def draw(run):
  """Returns {stem: Figure} of the layers that report a momentum; {} when none does."""
  layers = run.layers(METRIC)
  if not layers:
    return {}
  series = [run.series(f'moe/{layer}/{METRIC}') for layer in layers]
  figure, axes = canvas.new(1, 2, 9.6, 3.7)
  by_depth, over_steps = axes[0]
  for at, shade in zip(_times(series[0][0]), np.linspace(0.25, 1.0, TIMES)):
    norms = [norm[steps == at] for steps, norm in series]
    depth = [i for i, norm in enumerate(norms, 1) if len(norm)]
    by_depth.plot(depth, [norm[0] for norm in norms if len(norm)], 'o-', color=canvas.PALETTE[0],
                  alpha=shade, lw=1.4, ms=4, label=f'step {at:,.0f}')
  by_depth.set_xticks(range(1, len(layers) + 1))
  for i, (layer, (steps, norm)) in enumerate(zip(layers, series)):
    over_steps.plot(steps, norm, color=canvas.PALETTE[i % len(canvas.PALETTE)], lw=1.3,
                    ls=canvas.DASHES[i // len(canvas.PALETTE) % len(canvas.DASHES)], label=layer)
  over_steps.set_xlim(left=0)
  canvas.engineering(over_steps.xaxis)
  canvas.label(by_depth, 'sparse layer, from the input up', 'momentum, root mean square')
  canvas.label(over_steps, runs_lib.ABSCISSAE['step'])
  for ax in (by_depth, over_steps):
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8, ncols=1 + (len(layers) > 6))
  return {STEM: figure}


def _times(steps):
  """At most TIMES of `steps` f64[n], evenly from the first to the last."""
  return np.unique(steps[np.linspace(0, len(steps) - 1, TIMES).round().astype(int)])
