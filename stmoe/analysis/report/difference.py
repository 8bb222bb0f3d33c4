"""How far configurations are from the dense one: the difference of their results, with its interval."""

import math

from stmoe.analysis import curves
from stmoe.analysis import verdict
from stmoe.analysis.report import leaderboard
from stmoe.analysis.report import page

WIDTH, LEFT, RIGHT, ROW = 860, 210, 140, 26
LONGEST = 30                             # characters of a name


def panel(runs, labels):
  """Returns the HTML of the panel, '' without a dense configuration beside others of the same data.

  Args:
    runs:   Runs of one folder. labels: a label per run; runs of equal label are seeds of one another.
  """
  key, unit = curves.measure([run for run in runs if run.done is not None])
  results: dict = {}
  for run, label in zip(runs, labels):
    if run.done is not None and run.last(key) is not None:
      results.setdefault(label, {})[run.config.get('seed', 0)] = run.last(key)
  dense = [label for run, label in zip(runs, labels)
           if leaderboard.method(run.config) == 'dense' and label in results]
  others = [label for label in results if dense and label != dense[0]]
  if not others or len({leaderboard.data(run) for run in runs}) > 1:
    return ''
  rows = {label: verdict.interval(results[label], results[dense[0]]) for label in others}
  rows = dict(sorted(rows.items(), key=lambda item: item[1][0]))
  caption = (f'Validation {unit or "loss"} minus that of {dense[0]}: left of the line is better. Bars are '
             '95 % intervals over seeds; without a bar there is one seed, and the place says little.')
  return f'<figure>{_svg(rows)}<figcaption>{page.esc(caption)}</figcaption></figure>'


def _svg(rows):
  """The SVG of dict label -> (difference, half width of its interval or NaN, ...)."""
  ends = [abs(effect) + (0 if math.isnan(half) else half) for effect, half, *_ in rows.values()]
  reach = max([end for end in ends if math.isfinite(end)], default=0) or 1.0
  middle, half_width = (LEFT + WIDTH - RIGHT) / 2, (WIDTH - RIGHT - LEFT) / 2
  at = lambda value: middle + value / reach * half_width
  height = ROW * len(rows) + 12
  parts = [f'<svg class="wide" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="differences to dense">',
           f'<line class="zero" x1="{middle}" x2="{middle}" y1="0" y2="{height}"/>']
  for row, (label, (effect, half, *_)) in enumerate(rows.items()):
    parts += _row(label, effect, half, ROW * row + ROW / 2 + 6, at)
  return ''.join(parts) + '</svg>'


def _row(label, effect, half, y, at):
  """The marks of a configuration at height `y`: its name, interval, point, and the numbers."""
  known = not math.isnan(half)
  kind = 'better' if known and effect + half < 0 else 'worse' if known and effect - half > 0 else 'even'
  name = page.esc(label if len(label) <= LONGEST else f'…{label[1 - LONGEST:]}')
  yield f'<text class="strong" x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{name}</text>'
  if not math.isfinite(effect):
    return
  if known:
    yield (f'<line class="{kind}" stroke-width="3" x1="{at(effect - half):.1f}" x2="{at(effect + half):.1f}" '
           f'y1="{y}" y2="{y}"/>')
  yield f'<circle class="{kind}" cx="{at(effect):.1f}" cy="{y}" r="5"/>'
  text = f'{effect:+.4f}' + (f' ± {half:.4f}' if known else '')
  yield f'<text x="{WIDTH - RIGHT + 10}" y="{y + 4}">{text}</text>'
