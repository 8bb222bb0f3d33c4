"""Which experts serve which task: the weights of every gate of a mixture for several tasks."""

import numpy as np

from stmoe.analysis import canvas

STEM = 'experts_of_tasks'
CAPTIONS = {STEM: 'Which experts serve which task (MMoE, PLE, HoME): the mean weight of every expert at each '
                  'gate, over the rows of the last recorded step. A panel is a level of the mixture. An '
                  'empty cell is an expert that the gate does not see.'}


def draw(run):
  """Returns {stem: Figure} of the gates that report beside a level; {} when there is none."""
  levels = {}
  for name in run.loads:
    level, _, gate = name.partition('.')
    if gate and level.startswith('level_'):
      levels.setdefault(level, []).append(gate)
  if not levels:
    return {}
  tall = max(map(len, levels.values()))
  figure, axes = canvas.new(1, len(levels), 4.6 * len(levels), 1.6 + 0.45 * tall)
  for ax, (level, gates) in zip(axes[0], sorted(levels.items())):
    shares = np.stack([share(run.loads[f'{level}.{gate}'][1][-1]) for gate in gates])          # [gates, E]
    shown = ax.imshow(np.where(shares > 0, shares, np.nan), cmap='Blues', vmin=0, vmax=1, aspect='auto')
    for row, column in np.argwhere(shares > 0):
      ink = 'white' if shares[row, column] > 0.6 else canvas.INK
      ax.text(column, row, f'{shares[row, column]:.2f}', ha='center', va='center', fontsize=8, color=ink)
    ax.set_yticks(range(len(gates)), gates)
    ax.set_xticks(range(shares.shape[1]))
    ax.grid(False)
    canvas.label(ax, 'expert', None, level.replace('_', ' '))
  figure.colorbar(shown, ax=axes[0].tolist(), label='share of the gate')
  return {STEM: figure}


def share(load):
  """Returns f[E], the parts of a load f[E] that each expert has; an expert without a number has none.

  >>> share(np.array([1.0, 3.0, np.nan])).tolist()
  [0.25, 0.75, 0.0]
  """
  load = np.nan_to_num(load)
  return load / max(load.sum(), 1e-12)
