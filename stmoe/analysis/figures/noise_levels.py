"""Which experts work at which noise level, as `stmoe sample` saw it."""

import numpy as np

from stmoe import errors
from stmoe import files
from stmoe.analysis import canvas

FILE = 'noise_levels.npz'                # in a run directory: level f32[t], load/LAYER f32[t,E]
STEM = 'noise_levels'
CAPTIONS = {STEM: 'Share of the experts of a layer by noise level, from noise (left, 1) to image (right, 0), '
                  'as samples were drawn. Where the shares do not change, all levels have the same experts.'}
ROWS = 6                               # layers drawn, first to last


def draw(run):
  """Returns {stem: Figure} where samples were drawn of the run; {} elsewhere."""
  if not (run.path / FILE).is_file():
    return {}
  level, load_of = read(run.path / FILE)
  layers = list(load_of)
  shown = [layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, ROWS).round().astype(int))]
  columns = min(3, len(shown))
  rows = -(-len(shown) // columns)
  figure, axes = canvas.new(rows, columns, 1 + 3.2 * columns, 0.6 + 2.4 * rows)
  handles = {}
  for ax, layer in zip(axes.flat, shown):
    load = load_of[layer]                                            # [t, E]
    share = load / np.maximum(load.sum(axis=1, keepdims=True), 1)
    colors = [canvas.PALETTE[e % len(canvas.PALETTE)] for e in range(share.shape[1])]
    areas = ax.stackplot(level, share.T, colors=colors, lw=0.4, edgecolor='white')
    handles |= {f'expert {e}': area for e, area in enumerate(areas) if e < len(canvas.PALETTE)}
    ax.set_ylim(0, 1)
    ax.set_xlim(1, 0)
    canvas.label(ax, title=layer)
  for ax in axes.flat[len(shown):]:
    ax.set_visible(False)
  for ax in axes[-1]:
    canvas.label(ax, 'noise level')
  for row in axes:
    canvas.label(row[0], y='share of tokens')
  canvas.legend(figure, handles)
  return {STEM: figure}


def read(path):
  """Returns (level f[t], dict layer -> load f[t,E]) of file `path`; Damaged where it holds something else."""
  arrays = files.read_arrays(path)
  level = arrays.pop('level', None)
  loads = {name.removeprefix('load/'): load for name, load in arrays.items()}
  for array in (level, *loads.values()):
    if array is None or array.dtype.kind != 'f' or len(array) != len(level) or not np.isfinite(array).all():
      raise errors.Damaged(path, 'does not hold levels and the loads of layers at them')
  if level.ndim != 1 or not loads or any(load.ndim != 2 for load in loads.values()):
    raise errors.Damaged(path, 'does not hold levels and the loads of layers at them')
  return level, loads
