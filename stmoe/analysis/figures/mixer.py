"""Trajectories by expert: MixER's panels, and gate updates that were accepted."""

import numpy as np

from stmoe.analysis import canvas
from stmoe.runs import read as runs_lib
from stmoe.runs import records

STEM, UPDATES = 'trajectories_by_expert', 'gate_updates'
CAPTIONS = {
    STEM: 'Held-out trajectories in the plane of their first two numbers, a panel for each expert that has '
          'any. Dots: the data; lines: what the expert makes of the first state, by family.',
    UPDATES: 'Left: share of the tried updates of the gate that were accepted until each step. Right: '
             'adjusted Rand index of experts and families of held-out trajectories.',
}
FAMILY = 4                               # shown environments of a family
STATE = 'router.tried', 'router.accepted'


def draw(run):
  """Returns {stem: Figure} of a run on trajectories; {} for other runs."""
  step, shown = records.shown(run.path)
  names = ('initial', 'wanted', 'predicted', 'choice')
  found = {STEM: _by_expert(step, run, *(shown[name] for name in names))} if set(names) <= set(shown) else {}
  updates = {name: states for name, states in run.states.items() if set(STATE) <= set(states)}
  return found | ({UPDATES: _updates(run, updates)} if updates else {})


def _by_expert(step, run, initial, wanted, predicted, choice):
  """The Figure of trajectories from `initial` [P,n], [P,T n] each, with `choice` [P,E]."""
  real, experts = choice.sum(1) > 0, np.argmax(choice, 1)
  used = np.unique(experts[real])
  figure, axes = canvas.new(1, max(len(used), 1), 3.4 * max(len(used), 1) + 0.6, 3.6)
  families, handles = run.config.get('data', {}).get('families') or (), {}
  for ax, expert in zip(axes[0], used):
    for place in np.flatnonzero(real & (experts == expert)):
      kind = place // FAMILY
      colour = canvas.PALETTE[kind % len(canvas.PALETTE)]
      data, made = (_plane(initial[place], states) for states in (wanted[place], predicted[place]))
      ax.plot(*data, '.', color=colour, ms=3, alpha=0.6)
      name = families[kind] if kind < len(families) else f'family {kind}'
      handles[name], = ax.plot(*made, color=colour, lw=1.2)
    second = 'second number' if ax is axes[0][0] else None
    canvas.label(ax, 'first number', second, f'expert {expert}, step {step:,}')
  canvas.legend(figure, handles)
  return figure


def _plane(initial, states):
  """F32[2,T+1 or T], the first two numbers of the states [T n] that follow `initial` [n] or [T n]."""
  values = len(initial) if len(initial) < len(states) else 2
  path = np.concatenate([initial[:values], states]).reshape(-1, values)
  return path[:, :2].T if values > 1 else np.stack([np.arange(len(path)), path[:, 0]])


def _updates(run, updates):
  """The Figure of accepted updates over steps, and of the Rand index."""
  figure, axes = canvas.new(1, 2, 9.6, 3.4)
  for name, states in updates.items():
    (steps, tried), (_, accepted) = (states[path] for path in STATE)
    axes[0][0].plot(steps, accepted / np.maximum(tried, 1), lw=1.4, label=name)
  axes[0][1].plot(*run.series('eval/rand'), lw=1.4, color=canvas.PALETTE[1])
  canvas.label(axes[0][0], runs_lib.ABSCISSAE['step'], 'accepted of tried updates')
  canvas.label(axes[0][1], runs_lib.ABSCISSAE['step'], 'adjusted Rand index')
  for ax in axes[0]:
    canvas.engineering(ax.xaxis)
  axes[0][0].set_ylim(0, 1.02)
  return figure
