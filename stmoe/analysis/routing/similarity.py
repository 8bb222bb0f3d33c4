"""How alike the experts of layers are, as heat maps beside each other."""

import numpy as np

from stmoe.analysis import canvas


def figure(matrices):
  """Returns the Figure of a heat map for each of dict title -> [E,E] cosines, experts against experts."""
  drawn, axes = canvas.new(1, len(matrices), 3.1 * len(matrices) + 0.8, 3.3)
  for ax, (title, matrix) in zip(axes[0], matrices.items()):
    image = ax.imshow(np.asarray(matrix), cmap='PuOr_r', vmin=-1, vmax=1)
    ax.grid(False)
    canvas.label(ax, 'expert', 'expert' if ax is axes[0, 0] else None, title)
  bar = drawn.colorbar(image, ax=list(axes[0]), shrink=0.85, pad=0.02)
  bar.set_label('cosine of weights', fontsize=9.5, color=canvas.INK)
  bar.outline.set_visible(False)
  return drawn
