"""Is a number of experts that varies by token better than a fixed one of the same mean cost?"""

import numpy as np

from stmoe.analysis import canvas
from stmoe.analysis import verdict
from stmoe.experiments.variable_k import sweep
from stmoe.sweep import collect

NAMES = ('dense', *sweep.COUNTED, 'mixture_of_depths')
ACTIVE = 'eval/active_experts'
NEAR = 0.01                                  # nats that count as as good


def report(results):
  """Returns the Verdicts on the claims of README.md."""
  of = lambda name: collect.values(results, name)
  active = lambda name: collect.values(results, name, ACTIVE)
  two = lambda name: dict.fromkeys(active(name), 2.0)
  return [
      verdict.exceeds('top-2 better than top-1', of('top_2'), of('top_1')),
      verdict.exceeds('top-4 better than top-2', of('top_4'), of('top_2')),
      verdict.exceeds('AdaMoE, two of four choices real, better than top-2', of('adamoe'), of('top_2')),
      verdict.exceeds('MoE++, one real expert a token, better than top-1', of('moe_plus_plus'), of('top_1')),
      verdict.alike('MoE++, one real expert, as good as top-2', of('moe_plus_plus'), of('top_2'), NEAR),
      verdict.exceeds('top-p better than top-2', of('top_p'), of('top_2')),
      verdict.exceeds('top-p computes fewer than two experts a token', active('top_p'), two('top_p')),
      verdict.alike('ReMoE computes 2 experts a token, to 10 %', active('remoe'), two('remoe'), 0.2),
      verdict.exceeds('ReMoE better than top-2', of('remoe'), of('top_2')),
      verdict.exceeds('Mixture of Depths better than dense', of('mixture_of_depths'), of('dense'))]


def cost(result):
  """Returns FLOPs of a token's forward as it was evaluated: with its mean number of real experts."""
  counted, name = result.row.get('flops_per_token'), result.name
  active = result.row.get(ACTIVE)
  if active is None or name not in sweep.COUNTED:
    return counted
  width = sweep.WIDTH['small'] * sweep.BIG.get(name, 1)
  one = sweep.SPARSE * sweep.PRODUCTS * 2 * sweep.D_MODEL * width
  return counted + one * (active - sweep.COUNTED[name])


def frontier(points):
  """Returns the sorted (x, y) that no other point beats in both: least cost, least loss.

  >>> frontier([(1, 3), (2, 2), (3, 2.5), (4, 1)])
  [(1, 3), (2, 2), (4, 1)]
  """
  best = []
  for x, y in sorted(points):
    if not best or y < best[-1][1]:
      best.append((x, y))
  return best


def figures(results):
  """Returns the loss against the average active FLOPs, small points of seeds, and the frontier of means."""
  figure, axes = canvas.new(1, 1, 7.0, 4.6)
  ax, handles, means = axes[0][0], {}, {}
  for number, name in enumerate(NAMES):
    again, colour = divmod(number, len(canvas.PALETTE))
    style = dict(color=canvas.PALETTE[colour], marker='os'[again], ls='')
    pairs = [(cost(one), one.row.get('eval/loss')) for one in results if one.name == name]
    pairs = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not pairs:
      continue
    means[name] = tuple(np.mean(pairs, axis=0))
    ax.plot(*zip(*pairs), ms=3, alpha=0.5, **style)
    handles[name], = ax.plot(*means[name], ms=7, **style)
    ax.annotate(name, means[name], xytext=(5, 4), textcoords='offset points', fontsize=8, color=canvas.INK)
  handles['frontier'], = ax.plot(*zip(*frontier(means.values())), '-', color=canvas.FAINT, lw=1.2)
  canvas.engineering(ax.xaxis)
  canvas.label(ax, 'average active FLOPs a token, forward', 'validation loss (nats per token)')
  canvas.legend(figure, handles)
  return dict(frontier=figure)
