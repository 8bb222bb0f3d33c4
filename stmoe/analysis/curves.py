"""Figures of training: loss against steps, tokens and FLOPs; expert load; routing health.

Pure functions from Runs to matplotlib Figures. Notebooks, `stmoe plot` and the report share these functions.
"""

import math

from matplotlib import ticker
import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis import figures as methods
from stmoe.analysis import measures
from stmoe.runs import read as runs_lib

# metric -> (axis label, factor, value of perfect health or None)
HEALTH = {
    'drop_frac': ('dropped token choices (%)', 100.0, 0.0),
    'router_entropy': ('router entropy (nats)', 1.0, None),
    'max_load_ratio': ('busiest expert / mean load', 1.0, 1.0),
}


def figures(runs, labels=None, baselines=None):
  """Returns dict stem -> Figure: everything the metrics of `runs` can show.

  Args:
    runs:      list of Run.
    labels:    a label per run; runs of equal label (seeds) share a colour. None = the names.
    baselines: dict text -> bits per byte, drawn as horizontal lines.
  """
  return {'loss': loss(runs, labels, baselines), **besides_loss(runs, labels)}


def besides_loss(runs, labels=None, singly=None):
  """Returns the `figures` of routing, and those that methods draw.

  singly: the `runs` that get figures of their own; None = all.
  """
  drawn = {}
  if any(run.layers(metric) for run in runs for metric in HEALTH):
    drawn['routing_health'] = health(runs, labels)
  for run in runs if singly is None else singly:
    if run.loads:
      drawn[f'expert_load_{run.name.replace("/", "_")}'] = load(run)
    for stem, figure in methods.draw(run).items():
      drawn[f'{stem}_{run.name.replace("/", "_")}'] = figure
  return drawn


def loss(runs, labels=None, baselines=None, xs=('step', 'tokens', 'flops')):
  """Returns the Figure of validation loss (and training loss, faint) against each of `xs`.

  Losses are bits per byte where the runs have them, otherwise what their target has.
  """
  labels = labels or [run.name for run in runs]
  styles = canvas.styles(labels)
  key, unit = measure(runs)
  figure, axes = canvas.new(1, len(xs), 4.1 * len(xs), 3.7)
  handles, drawn_values = {}, []
  for ax, x in zip(axes[0], xs):
    for run, name in zip(runs, labels):
      colour, dash = styles[name]
      train_x, train_y = run.series(measures.first(run, 'loss/'), x)
      ax.plot(train_x, _smooth(train_y) * bits_ratio(run, key), dash, color=colour, alpha=0.35, lw=1)
      at, value = run.series(key, x)
      handles[name], = ax.plot(at, value, dash, color=colour, lw=1.8, marker='o', ms=3.5)
      drawn_values += [*value, *(train_y[len(train_y) // 10:] * bits_ratio(run, key))]
    text = f'loss ({unit})' if unit else 'loss'
    canvas.label(ax, runs_lib.ABSCISSAE[x], text if ax is axes[0, 0] else None)
    canvas.engineering(ax.xaxis)
  for ax in axes[0]:
    _baselines(ax, baselines or {}, named=ax is axes[0, -1])
    _frame(ax, drawn_values)
  canvas.legend(figure, handles)
  axes[0, 0].text(0.98, 0.97, 'points: validation\nfaint: training', transform=axes[0, 0].transAxes,
                  ha='right', va='top', fontsize=8, color=canvas.FAINT,
                  bbox=dict(facecolor='white', edgecolor='none', pad=1))     # over the lines of baselines
  return figure


def measure(runs):
  """Returns (metric, unit) of validation losses in figures: bits per byte, if all runs have these bits."""
  in_bits = all(len(run.series('eval/bits_per_byte')[0]) for run in runs)
  return ('eval/bits_per_byte', 'bits per byte') if in_bits else ('eval/loss', measures.unit(runs))


def bits_ratio(run, key):
  """Returns bits per byte over nats per token of `run`; 1.0 where metric `key` is not in bits per byte.

  The training loss of `run` times this ratio compares with `key`.
  """
  nats, bits = run.last('eval/loss'), run.last('eval/bits_per_byte')
  return bits / nats if key == 'eval/bits_per_byte' and nats else 1.0


def _smooth(y):
  """Running mean of the last few points, so that losses of small batches can be read."""
  window = max(1, min(9, len(y) // 4))
  sums = np.cumsum(np.concatenate([[0.0], y]))                       # [n+1]
  ends = np.arange(1, len(y) + 1)
  starts = np.maximum(ends - window, 0)
  return (sums[ends] - sums[starts]) / (ends - starts)


def _baselines(ax, baselines, named):
  for text, value in baselines.items():
    ax.axhline(value, color=canvas.FAINT, lw=0.9, ls=(0, (1, 2)), zorder=0)
    if named:
      ax.annotate(text, (1.0, value), xycoords=('axes fraction', 'data'), xytext=(4, 0), va='center',
                  textcoords='offset points', fontsize=8, color=canvas.FAINT, annotation_clip=True)


def _frame(ax, values):
  """Limits y to the values after the first tenth: the fall from random weights hides the rest."""
  values = np.array([v for v in values if math.isfinite(v)])
  if len(values):
    low, high = values.min(), values.max()
    ax.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low) + 1e-9)
  ax.set_xlim(left=0)


def final(values, unit='validation bits per byte', baselines=None):
  """Returns the Figure of final results: a row per label, a dot per seed, a bar at the mean.

  Args:
    values:    dict label -> list of floats.
    unit:      what the values are.
    baselines: dict text -> value; baselines near the results are drawn.
  """
  figure, axes = canvas.new(1, 1, 7.2, 1.3 + 0.42 * len(values))
  ax, styles = axes[0, 0], canvas.styles(values)
  for row, (name, results) in enumerate(values.items()):
    colour = styles[name][0]
    mean = float(np.mean(results))
    ax.plot([mean, mean], [row - 0.28, row + 0.28], color=colour, lw=2.5)
    ax.plot(results, [row] * len(results), 'o', color=colour, ms=6, alpha=0.75, mec='white')
    ax.annotate(f'{mean:.3f}', (mean, row - 0.28), xytext=(0, 3), textcoords='offset points', ha='center',
                fontsize=9, color=canvas.INK)
  everything = [v for results in values.values() for v in results]
  margin = 0.15 * (max(everything) - min(everything)) + 0.02
  ax.set_xlim(min(everything) - margin, max(everything) + margin)
  for text, value in (baselines or {}).items():
    if ax.get_xlim()[0] < value < ax.get_xlim()[1]:
      ax.axvline(value, color=canvas.FAINT, lw=0.9, ls=(0, (1, 2)), zorder=0)
      ax.annotate(text, (value, 1.0), xycoords=('data', 'axes fraction'), xytext=(0, 3), ha='center',
                  textcoords='offset points', fontsize=8, color=canvas.FAINT)
  ax.set_yticks(range(len(values)), list(values), fontsize=10)
  ax.set_ylim(len(values) - 0.4, -0.6)
  ax.grid(False)
  ax.grid(axis='x', color=canvas.GRID)
  canvas.label(ax, unit + ' (lower is better)')
  return figure


def health(runs, labels=None):
  """Returns the Figure of drops, router entropy and load imbalance over steps.

  Strong lines are means over sparse layers, faint lines single layers.
  """
  labels = labels or [run.name for run in runs]
  styles = canvas.styles(labels)
  figure, axes = canvas.new(1, len(HEALTH), 4.1 * len(HEALTH), 3.5)
  handles = {}
  for ax, (metric, (text, factor, ideal)) in zip(axes[0], HEALTH.items()):
    for run, name in zip(runs, labels):
      colour, dash = styles[name]
      for layer in run.layers(metric):
        x, y = run.series(f'moe/{layer}/{metric}')
        ax.plot(x, y * factor, dash, color=colour, alpha=0.25, lw=0.9)
      x, y = run.series(f'moe/{metric}')
      if len(x):                                                     # dense runs keep their colour unused
        handles[name], = ax.plot(x, y * factor, dash, color=colour, lw=1.8)
    if ideal is not None:
      ax.axhline(ideal, color=canvas.FAINT, lw=0.9, ls=(0, (1, 2)), zorder=0)
    canvas.label(ax, runs_lib.ABSCISSAE['step'], text)
    canvas.engineering(ax.xaxis)
    ax.set_xlim(left=0)
    if ideal is None:
      ax.set_ylim(0, 1.08 * ax.get_ylim()[1])
  canvas.legend(figure, handles)
  return figure


def load(run, columns=2):
  """Returns the Figure of expert load over time, a heat map per sparse layer.

  Colour is log2 of load over the mean of the layer: white is balanced, purple starved,
  orange overloaded. The scale ends at a quarter and at four times the mean.
  """
  layers = list(run.loads)
  columns = min(columns, len(layers))
  rows = math.ceil(len(layers) / columns)
  experts = max(load.shape[1] for _, load in run.loads.values())
  figure, axes = canvas.new(rows, columns, 5.2 * columns + 0.8, 1.0 + rows * min(3.2, 1.0 + 0.14 * experts))
  for ax in axes.flat[len(layers):]:
    ax.remove()
  for ax, layer in zip(axes.flat, layers):
    image = _heat(ax, *run.loads[layer])
    canvas.label(ax, runs_lib.ABSCISSAE['step'], 'expert', layer)
  bar = figure.colorbar(image, ax=list(axes.flat[:len(layers)]),
                        ticks=[-2, -1, 0, 1, 2], shrink=0.9, pad=0.02)
  bar.ax.set_yticklabels(['¼', '½', '1', '2', '4'], fontsize=9)
  bar.set_label('load / mean load', fontsize=9.5, color=canvas.INK)
  bar.outline.set_visible(False)
  figure.suptitle(f'expert load, {run.name}', fontsize=11, color=canvas.INK)
  return figure


def _heat(ax, steps, load):
  """Draws load [n,E] at `steps` [n] as log2(load / mean); returns the image."""
  ratio = load / np.maximum(load.mean(axis=1, keepdims=True), 1e-9)  # [n, E]
  colour = np.log2(np.clip(ratio, 0.25, 4.0)).T                      # [E, n]
  first = max(2 * steps[0] - steps[1], 0) if len(steps) > 1 else 0   # an upcycled run does not begin at 0
  edges = np.array([first, *(steps[1:] + steps[:-1]) / 2, max(steps[-1], 1)])
  image = ax.pcolormesh(edges, np.arange(load.shape[1] + 1) - 0.5, colour, cmap='PuOr_r', vmin=-2, vmax=2,
                        rasterized=True)
  ax.grid(False)
  ax.invert_yaxis()
  ax.yaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=8))
  canvas.engineering(ax.xaxis)
  return image
