"""An Assignment as a picture: tokens from left to right, experts from top to bottom, an edge a square."""

import math

import numpy as np

from stmoe.analysis import canvas


def figure(assignments, wanted=None, group=0, kinds=None, columns=2):
  """Returns the Figure of the map of a group of every Assignment, all of equally many tokens.

  A square is an edge that is executed, darker with its weight, with its slot in the expert's buffer written
  on it. A cross is an edge that was wanted and found no slot. A grey stripe is a token that no expert took.

  Args:
    assignments: dict title -> Assignment.
    wanted:      dict title -> Edges before `cap`, where there are any; without them no crosses.
    group:       which of the G groups.
    kinds:       list of S texts, named where they change; None = tokens have numbers only.
    columns:     maps beside each other.
  """
  some = next(iter(assignments.values()))
  rows = math.ceil(len(assignments) / columns)
  most = max(a.num_experts for a in assignments.values())
  width = min(0.3 * some.num_tokens + 1.0, 13.5 / columns)
  drawn, axes = canvas.new(rows, columns, width * columns, rows * (0.3 * most + 1.15))
  for ax in axes.flat[len(assignments):]:
    ax.remove()
  for ax, (title, a) in zip(axes.flat, assignments.items()):
    _map(ax, a, (wanted or {}).get(title), group, labelled=width / some.num_tokens > 0.2)
    canvas.label(ax, y='expert', title=f'{title}: {_said(a, group)}')
    _kinds(ax, kinds or [])
  return drawn


def edges(a, group=0):
  """Returns (token i32[n], expert i32[n], weight f32[n], slot i32[n]) of the live edges of a group of `a`."""
  live = np.asarray(a.expert[group]) < a.num_experts
  return tuple(np.asarray(field[group])[live] for field in (a.token, a.expert, a.weight, a.slot))


def dropped(a, wanted, group=0):
  """Returns (token i32[n], expert i32[n]) of the edges of `wanted` that are not live in `a`, made of them."""
  lost = np.asarray(wanted.expert[group] < a.num_experts) & ~np.asarray(a.expert[group] < a.num_experts)
  return np.asarray(wanted.token[group])[lost], np.asarray(wanted.expert[group])[lost]


def _said(a, group):
  """'capacity 4, 2 tokens without expert'."""
  alone = a.num_tokens - len(set(edges(a, group)[0].tolist()))
  text = f'{alone} token{"" if alone == 1 else "s"} without expert' if alone else 'every token has an expert'
  return (f'capacity {a.capacity}, ' if a.capacity < a.num_tokens else '') + text


def _map(ax, a, wanted, group, labelled):
  token, expert, weight, slot = edges(a, group)
  weight = np.abs(weight)                                            # TC-MoE's have signs
  for alone in sorted(set(range(a.num_tokens)) - set(token.tolist())):
    ax.axvspan(alone - 0.5, alone + 0.5, color=canvas.GRID, lw=0)
  shade = np.full((a.num_experts, a.num_tokens), np.nan)             # [E, S]
  shade[expert, token] = weight / max(weight.max(initial=0), 1e-9)
  ax.pcolormesh(np.arange(a.num_tokens + 1) - 0.5, np.arange(a.num_experts + 1) - 0.5, shade, cmap='Blues',
                vmin=-0.35, vmax=1.25, edgecolor='white', lw=0.8)
  for t, e, w, s in zip(token, expert, shade[expert, token], slot):
    if labelled:
      ax.text(t, e, str(s), ha='center', va='center', fontsize=7.5, color='white' if w > 0.45 else canvas.INK)
  if wanted is not None:
    ax.plot(*dropped(a, wanted, group), 'x', color=canvas.PALETTE[1], ms=6, mew=1.6)
  ax.grid(False)
  ax.set_xlim(-0.5, a.num_tokens - 0.5)
  ax.set_ylim(a.num_experts - 0.5, -0.5)
  ax.set_yticks(range(a.num_experts))


def _kinds(ax, kinds):
  """Names runs of equal kinds below the axis, with a line between two of them."""
  starts = [i for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
  ends = [*starts[1:], len(kinds)]
  for start in starts[1:]:
    ax.axvline(start - 0.5, color=canvas.FAINT, lw=0.9, ls=(0, (1, 2)))
  if kinds:
    ax.set_xticks([(a + b - 1) / 2 for a, b in zip(starts, ends)], [kinds[start] for start in starts])
