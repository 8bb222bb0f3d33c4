"""What one step on unlabelled images does in every domain: Meta-DMoE (arXiv:2210.03885)."""

import re

import numpy as np

from stmoe.analysis import canvas
from stmoe.runs import read as runs_lib

STEM = 'domains'
CAPTIONS = {STEM: 'Adaptation at test time (Meta-DMoE). Left: accuracy in every new domain in the last '
                  'evaluation, of the student before and after its step on unlabelled images of the domain. '
                  'Right: the accuracy over all new domains in training.'}
WHEN = 'before', 'adapted'


def draw(run):
  """Returns {stem: Figure} of a run whose evaluation is by domain; {} for other runs."""
  names = {name for line in run.lines for name in line}
  found = (re.fullmatch(r'eval/domain_(\d+)_adapted', name) for name in names)
  domains = sorted(int(match[1]) for match in found if match)
  if not domains:
    return {}
  figure, axes = canvas.new(1, 2, 9.2, 3.4)
  by_domain, over_steps = axes[0]
  handles = {}
  for i, when in enumerate(WHEN):
    last = [run.series(f'eval/domain_{k}_{when}')[1][-1] * 100 for k in domains]
    places = np.arange(len(domains)) + 0.4 * (i - 0.5)
    handles[when] = by_domain.bar(places, last, 0.36, color=canvas.PALETTE[i])
    at, value = run.series('eval/accuracy' + ('_before' if when == 'before' else ''))
    over_steps.plot(at, value * 100, color=canvas.PALETTE[i], lw=1.6)
  by_domain.set_xticks(range(len(domains)), map(str, domains))
  by_domain.set_ylim(0, 100)
  canvas.label(by_domain, 'new domain', 'accuracy (%)')
  canvas.label(over_steps, runs_lib.ABSCISSAE['step'], 'accuracy (%)')
  over_steps.set_xlim(left=0)
  canvas.engineering(over_steps.xaxis)
  canvas.legend(figure, handles)
  return {STEM: figure}
