"""One self-contained HTML page about some runs: no scripts, no fonts, no other files.

Everything that comes from a run is escaped; figures are data URIs.
"""

import html
import json

from stmoe.analysis import baselines as baselines_lib
from stmoe.analysis import canvas
from stmoe.analysis import curves
from stmoe.analysis import figures as methods
from stmoe.analysis import routing_view
from stmoe.analysis import runs as runs_lib
from stmoe.analysis import table

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #222;
  max-width: 1200px; margin: 0 auto; padding: 28px 24px 80px; background: #fbfbfa; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 42px 0 12px; padding-bottom: 5px; border-bottom: 1px solid #ddd; }
h3 { font-size: 15px; margin: 22px 0 8px; }
p.lead, p.note { color: #5d5d5d; margin: 4px 0 12px; }
p.note { font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; background: #fff; }
th, td { padding: 6px 9px; border-bottom: 1px solid #e8e8e8; text-align: right; vertical-align: top; }
th { font-weight: 600; color: #5d5d5d; background: #f4f4f2; white-space: nowrap; }
td:first-child { white-space: nowrap; }
th:first-child, td:first-child, table.text td, table.text th { text-align: left; }
td.best { font-weight: 700; color: #00664d; }
tr.baseline td { color: #767676; font-style: italic; }
figure { margin: 14px 0; padding: 12px; background: #fff; border: 1px solid #e2e2e2; border-radius: 8px; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: 13px; color: #5d5d5d; margin-top: 8px; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
pre { background: #fff; border: 1px solid #e2e2e2; border-radius: 6px; padding: 10px; font-size: 12px;
  overflow-x: auto; }
code { font: 12.5px ui-monospace, Menlo, Consolas, monospace; }
"""

CAPTIONS = {
    'loss': 'Loss against optimizer steps, tokens and active training FLOPs. Points: validation; '
            'faint lines: training.',
    'final': 'Final validation result; dots are seeds, bars their mean.',
    'routing_health': 'Dropped token choices, router entropy and load imbalance during training. '
                      'Strong lines: mean over sparse layers; faint lines: single layers.',
    'expert_load': 'Real tokens sent to each expert over the mean of its layer, before drops. '
                   'White is balanced.',
}


def page(runs, costs=None, labels=None, routed=None, title='Runs'):
  """Returns the HTML text of the report.

  Args:
    runs:   list of Run.
    costs:  dict run name -> dict(parameters, active, flops_per_token), where known.
    labels: one label per run; runs of equal label are seeds of one another. Names when None.
    routed: dict run name -> `routing_view.sample` of it, where known.
    title:  heading of the page.
  """
  labels = labels or [run.name for run in runs]
  known = baselines_lib.common(runs)
  sections = [
      f'<h1>{_esc(title)}</h1>', f'<p class="lead">{_esc(_lead(runs, labels))}</p>',
      '<h2>Results</h2>', results(runs, costs or {}, labels, known),
      '<h2>Figures</h2>', *[_figure(stem, figure) for stem, figure in figures(runs, labels).items()],
      '<h2>What was run</h2>', config_differences(runs),
      *(['<h2>Where tokens go</h2>'] if routed else []),
      *[sample_section(name, sample) for name, sample in (routed or {}).items()],
      '<h2>Environment and corpus</h2>', environment(runs)]
  return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width, initial-scale=1">'
          f'<title>{_esc(title)}</title><style>{CSS}{routing_view.CSS}</style></head>\n<body>\n'
          + '\n'.join(sections) + '\n</body></html>\n')


def _lead(runs, labels):
  done = sum(run.done is not None for run in runs)
  seeds = '' if len(set(labels)) == len(runs) else f' of {len(set(labels))} configurations'
  tasks = ', '.join(sorted({str(run.config.get('data', {}).get('task', '?')) for run in runs}))
  return f'{len(runs)} runs{seeds} on {tasks}; {done} finished.'


def results(runs, costs, labels, known):
  """Returns the table of results, seeds averaged, with the baselines of the corpus below."""
  grouped = table.group([table.values(run, costs.get(run.name)) for run in runs], labels)
  headings, rows = table.cells(grouped)
  bits = {label: row['bits'][0] for label, row in grouped.items() if row['bits']}
  best = min(bits, key=bits.get) if len(bits) > 1 else None
  body = [_row(row, best=headings.index('bits/byte') if row[0] == best else None) for row in rows]
  if 'bits/byte' in headings:
    at = headings.index('bits/byte')
    for text, value in known.items():
      cells = [text] + [''] * (len(headings) - 1)
      cells[at] = f'{value:.3f}'
      body.append(_row(cells, kind='baseline'))
  note = (f'<p class="note">Baselines: validation bits per byte of the corpus on '
          f'{baselines_lib.MEASURED_ON}.</p>' if known else '')
  return _table(headings, body) + note


def figures(runs, labels):
  """Returns dict stem -> Figure of everything that runs with these labels can show together."""
  known, finals, made = baselines_lib.common(runs), {}, {}
  for run, label in zip(runs, labels):
    if run.last('eval/bits_per_byte') is not None:
      finals.setdefault(label, []).append(run.last('eval/bits_per_byte'))
  if len(finals) > 1:
    made['final'] = curves.final(finals, baselines=known)
  return {**made, **curves.figures(runs, labels, known)}


def _figure(stem, figure):
  known = CAPTIONS | methods.captions()
  caption = next(text for start, text in known.items() if stem.startswith(start))
  return (f'<figure><img alt="{_esc(caption)}" src="{canvas.data_uri(figure)}">'
          f'<figcaption>{_esc(caption)}</figcaption></figure>')


def config_differences(runs):
  """Returns the table of configuration fields that differ, and every configuration folded away."""
  changed = runs_lib.differences([run.config for run in runs])
  rows = [_row([key] + ['' if v is None else json.dumps(v) for v in found], code=True)
          for key, found in changed.items()]
  parts = [_table(['field', *[run.name for run in runs]], rows, 'text') if rows else
           '<p class="note">All configurations are equal.</p>' if len(runs) > 1 else '']
  for run in runs:
    text = json.dumps(run.config, indent=2, sort_keys=True)
    parts.append(f'<details><summary>{_esc(run.name)}: whole configuration</summary>'
                 f'<pre>{_esc(text)}</pre></details>')
  return '\n'.join(parts)


def environment(runs):
  """Returns the table of env.json, one column per group of runs with the same environment."""
  groups = {}
  for run in runs:
    groups.setdefault(json.dumps(run.env, sort_keys=True), []).append(run)
  envs = [runs_lib.flatten(members[0].env) for members in groups.values()]
  names = [', '.join(run.name for run in members) for members in groups.values()]
  rows = [_row([key] + [_plain(env.get(key, '')) for env in envs]) for key in sorted(set().union(*envs))]
  return _table(['', *names], rows, 'text')


def sample_section(name, sample):
  """Returns the routed text and the specialisation of every sparse layer of one run.

  Args:
    name:   of the run.
    sample: what `routing_view.sample` returned for it.
  """
  parts = [f'<h3>{_esc(name)}</h3>',
           '<p class="note">Background: the expert of largest weight; underline: the second. Dotted grey: no '
           'expert had room. Point at a token for the weights.</p>']
  for layer, seen in sample.items():
    words = lambda best: '   '.join(f'{_quoted(piece)} ×{lift:.1f}' for piece, _, lift in best)
    rows = [_row([str(e), f'{share:.1%}', words(best)], code=True)
            for e, (share, best) in enumerate(seen.table)]
    parts.append(
        f'<details open><summary>{_esc(layer)}</summary>'
        + routing_view.chips([share for share, _ in seen.table])
        + routing_view.to_html(seen)
        + '<details><summary>most typical tokens of each expert, with their over-representation</summary>'
        + _table(['expert', 'share', 'tokens'], rows, 'text') + '</details></details>')
  return '\n'.join(parts)


def _quoted(piece):
  return routing_view.visible(piece).replace(' ', '␣')


def _plain(value):
  return value if isinstance(value, str) else json.dumps(value)


def _table(headings, rows, kind=''):
  head = ''.join(f'<th>{_esc(h)}</th>' for h in headings)
  return (f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
          f'<tbody>{"".join(rows)}</tbody></table></div>')


def _row(texts, kind='', best=None, code=False):
  wrap = lambda i, t: f'<code>{_esc(t)}</code>' if code and i else _esc(t)
  cells = [f'<td class="best">{wrap(i, t)}</td>' if i == best else f'<td>{wrap(i, t)}</td>'
           for i, t in enumerate(texts)]
  return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _esc(text):
  return html.escape(str(text), quote=True)
