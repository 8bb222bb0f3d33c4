"""A self-contained HTML page about some runs: no fonts, no other files, one script of our own.

Everything that comes from a run is escaped; figures are data URIs. Runs of one folder, a sweep's or a
comparison's, are drawn together.
"""

import dataclasses
import json
import re
import shlex

from stmoe.analysis import baselines as baselines_lib
from stmoe.analysis import curves
from stmoe.analysis import figures as methods
from stmoe.analysis import verdict
from stmoe.analysis.report import chart
from stmoe.analysis.report import difference
from stmoe.analysis.report import leaderboard
from stmoe.analysis.report import page as html
from stmoe.analysis.routing import diagnosed
from stmoe.analysis.routing import spans
from stmoe.analysis.routing import text as routing_view
from stmoe.runs import read as runs_lib

SHOWN = 12             # configurations in a figure, and of a folder with figures of their own
OPEN = 3               # figures of single runs that are not folded away

CAPTIONS = {
    'loss': 'Loss of training (faint) and of validation (points). A click on a run switches the run.',
    'final': 'Final validation result; dots are seeds, bars their mean.',
    'routing_health': 'Dropped token choices, router entropy and load imbalance during training. '
                      'Strong lines: mean over sparse layers; faint lines: single layers.',
    'expert_load': 'Real tokens sent to each expert over the mean of its layer, before drops. '
                   'White is balanced.',
}
HOW_TO_READ = (
    'Background: the expert of largest weight, as strong as the weight; underline: the second. Dotted grey: '
    'no expert had room. Plain: the last token of a window, which is only predicted. Point at a token for '
    'the weights; a click on an expert shows its tokens alone. An expert with a dashed edge is rare, an '
    'expert that is struck out got nothing.')
ANSWERS = {verdict.HOLDS: 'holds', verdict.FAILS: 'fails', verdict.OPEN: 'open'}


@dataclasses.dataclass(frozen=True)
class Question:
  """An experiment of which the page has runs.

  name:     of its folder, with the size.
  text:     of its README, down to the first command.
  command:  that trains its runs.
  note:     how many of its runs are there.
  verdicts: list of verdict.Verdict.
  figures:  dict stem -> Figure.
  """
  name: str
  text: str
  command: str
  note: str
  verdicts: list
  figures: dict


def page(runs, costs=None, labels=None, routed=None, title='Runs', questions=(), command=''):
  """Returns the HTML text of the report.

  Args:
    runs:      list of Run.
    costs:     dict run name -> dict(parameters, active, flops_per_token), where known.
    labels:    a label per run; runs of equal label are seeds of one another. None = the names.
    routed:    dict name -> `routing_view.sample` of a run, where known.
    title:     heading of the page.
    questions: list of Question.
    command:   that makes this page.
  """
  labels = labels or [run.name for run in runs]
  parts = {
      'Results': [results(runs, costs or {}, labels)],
      'Verdicts': [question(asked) for asked in questions],
      'Figures': folders(runs, labels),
      'Where tokens go': [sample_section(name, sample) for name, sample in (routed or {}).items()],
      'What routers do': [diagnosed_section(run) for run in runs if run.routing],
      'What was run': [commands(runs, command), config_differences(runs, labels)],
      'Environment and corpus': [environment(runs)]}
  parts = {text: content for text, content in parts.items() if content}
  head = [f'<h1>{html.esc(title)}</h1>', html.note(_lead(runs, labels), 'lead'), html.contents(parts)]
  sections = [text for name, content in parts.items() for text in (html.heading(name), *content)]
  return html.document(title, head + sections)


def _lead(runs, labels):
  num_done = sum(run.done is not None for run in runs)
  count = len(set(labels))
  seeds = '' if count == len(runs) else f' of {count} configuration{"s" if count > 1 else ""}'
  tasks = ', '.join(sorted({leaderboard.corpus(run.config) for run in runs}))
  return f'{len(runs)} runs{seeds} on {tasks}; {num_done} finished.'


def results(runs, costs, labels):
  """Returns the leaderboard, seeds averaged, with the baselines of the corpus below."""
  baselines = baselines_lib.common(runs)
  headings, rows = leaderboard.columns(runs, costs, labels)
  main = _main(headings)
  hide = lambda cell: dataclasses.replace(cell, kind=f'{cell.kind} more'.strip())
  more = lambda cells: [cell if heading in main else hide(cell) for heading, cell in zip(headings, cells)]
  body = [html.row(more(cells)) for cells in rows.values()]
  if 'bits/byte' in headings:
    at = headings.index('bits/byte')
    for text, value in baselines.items():
      cells = [html.Cell(text)] + [html.Cell('')] * (len(headings) - 1)
      cells[at] = html.Cell(f'{value:.3f}')
      body.append(html.row(more(cells), kind='baseline'))
  note = 'Lowest loss first; a click on a heading sorts. ' + _seeds(labels)
  if baselines and 'bits/byte' in headings:
    note += f' Baselines: validation bits per byte of the corpus on {baselines_lib.MEASURED_ON}.'
  head = [html.Cell(heading, kind='' if heading in main else 'more') for heading in headings]
  meanings = {text: leaderboard.MEANINGS[text] for text in headings if text in leaderboard.MEANINGS}
  return '\n'.join([html.table(head, body, 'sortable', meanings), html.note(note), html.definitions(meanings),
                    *_differences(runs, labels)])


def _main(headings):
  """The headings that are shown at first; with no bits per byte the column after the seeds is the result."""
  result = [] if 'bits/byte' in headings else headings[headings.index('seeds') + 1:][:1]
  return {*leaderboard.MAIN, *result}


def _seeds(labels):
  """What can be read from the differences of so many seeds, in words."""
  if len(set(labels)) == len(labels):
    return ('There is one seed of each: differences may be those of other seeds, and no result is marked as '
            'the best.')
  return ('± is the standard deviation of the seeds. The lowest loss is marked if its 95 % interval to each '
          'other lies below zero.')


def _differences(runs, labels):
  """The panels of differences to dense, a folder each."""
  panels = []
  for place in dict.fromkeys(run.path.parent for run in runs):
    mine = [(run, label) for run, label in zip(runs, labels) if run.path.parent == place]
    panels.append(difference.panel(*map(list, zip(*mine))))
  return [panel for panel in panels if panel]


def question(one):
  """Returns what an experiment asks, its verdicts, and the figures they are read from."""
  rows = []
  for decided in one.verdicts:
    has_interval = decided.low == decided.low and decided.high == decided.high  # not NaN
    rows.append(html.row(
        [html.Cell(decided.answer, kind='answer'), decided.claim,
         f'{decided.effect:+.4g}' if decided.effect == decided.effect else '–',
         f'{decided.low:+.4g} to {decided.high:+.4g}' if has_interval else '–',
         f'{decided.spread:.2g}' if has_interval else '–', '/'.join(map(str, dict.fromkeys(decided.seeds))),
         decided.rule],
        kind=ANSWERS[decided.answer]))
  headings = ['verdict', 'claim', 'effect', '95 % interval', 'spread', 'seeds', 'rule']
  return '\n'.join([
      f'<h3>{html.esc(one.name)}</h3>', *[html.note(text, 'claim') for text in paragraphs(one.text)],
      html.table(headings, rows, 'text'), html.note(one.note), html.pre(one.command),
      *[html.figure(figure, f'{one.name}: {stem}') for stem, figure in one.figures.items()]])


def paragraphs(text):
  """Returns the paragraphs of a README down to its first block of code, without the marks of Markdown.

  >>> paragraphs('# a: b' + chr(10) * 2 + 'See [x](y), `z`.')
  ['a: b', 'See x, z.']
  """
  text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text.partition('```')[0])
  return [' '.join(part.split()).lstrip('# ').replace('`', '') for part in re.split(r'\n\s*\n|\n(?=- )', text)
          if part.strip()]


def folders(runs, labels):
  """Returns the figures, the runs of each folder together."""
  places, parts = list(dict.fromkeys(run.path.parent for run in runs)), []
  for place in places:
    mine = [(run, label) for run, label in zip(runs, labels) if run.path.parent == place]
    members, names = map(list, zip(*mine))
    some, some_names = of_best(members, names)
    parts += [f'<h3>{html.esc(place.name)}</h3>'] if len(places) > 1 else []
    if len(some) < len(members):
      parts.append(html.note(f'The {len(set(some_names))} configurations of lowest loss, '
                             f'of {len(set(names))}.'))
    parts.append(chart.losses(some, some_names, caption('loss')))
    parts += _drawn(besides_loss(some, some_names))
  return parts


def _drawn(figures):
  """The figures as HTML: figures of all runs, then of single runs, folded away if they are many."""
  shared = [stem for stem in figures if stem in ('final', 'routing_health')]
  single = [html.figure(figure, caption(stem)) for stem, figure in figures.items() if stem not in shared]
  if len(single) > OPEN:
    single = [html.folded(f'{len(single)} figures of single runs', *single)]
  return [html.figure(figures[stem], caption(stem)) for stem in shared] + single


def caption(stem):
  """Returns the caption of figure `stem`, with the name of its run."""
  all_captions = CAPTIONS | methods.captions()
  start = next(start for start in all_captions if stem.startswith(start))
  name = stem.removeprefix(start).lstrip('_')
  return f'{name}: {all_captions[start]}' if name else all_captions[start]


def best(runs, labels):
  """Returns the labels, at most SHOWN, whose runs have the lowest losses; runs without a loss come last."""
  losses = {}
  for run, label in zip(runs, labels):
    losses.setdefault(label, []).append(run.last('eval/loss'))
  means = {label: sum(values) / len(values) for label, values in losses.items() if None not in values}
  return [*sorted(means, key=means.get), *(label for label in losses if label not in means)][:SHOWN]


def figures(runs, labels):
  """Returns dict stem -> Figure of everything that runs with these labels can show together.

  All are in the figure of final losses, the best in the others.
  """
  some, names = of_best(runs, labels)
  loss = curves.loss(some, names, baselines_lib.common(runs))
  return besides_loss(some, names) | finals(runs, labels) | dict(loss=loss)


def of_best(runs, labels):
  """Returns (runs, labels), those whose labels are among the `best`."""
  shown = best(runs, labels)
  some = [(run, label) for run, label in zip(runs, labels) if label in shown]
  return [run for run, _ in some], [label for _, label in some]


def besides_loss(runs, labels):
  """Returns dict stem -> Figure of runs, without curves of the loss, which a page draws itself (chart.py).

  A figure of a single run is drawn for the first run of each label.
  """
  firsts = [run for i, run in enumerate(runs) if labels[i] not in labels[:i]]
  return finals(runs, labels) | curves.besides_loss(runs, labels, firsts)


def finals(runs, labels):
  """Returns dict(final=Figure) of the last losses of all labels; nothing of a single one."""
  baselines, last = baselines_lib.common(runs), {}
  key, unit = curves.measure(runs)
  for run, label in zip(runs, labels):
    if run.last(key) is not None:
      last.setdefault(label, []).append(run.last(key))
  if len(last) < 2:
    return {}
  return dict(final=curves.final(last, f'validation {unit}', baselines if key.endswith('byte') else None))


def commands(runs, command=''):
  """Returns the commands that made the runs, each once, with the code's revision, and the page's command."""
  run_names = {}
  for run in runs:
    words = run.env.get('command') or []
    if words:
      text = shlex.join(['stmoe', *words[1:]])
      run_names.setdefault((text, run.env.get('revision') or 'unknown'), []).append(run.name)
  lines = []
  for revision in dict.fromkeys(of for _, of in run_names):
    lines += [f'# revision {revision}', *(text for text, of in run_names if of == revision)]
  if command:
    lines += ['# this page', command]
  return html.pre('\n'.join(lines)) if lines else html.note('The runs do not say how they were started.')


def config_differences(runs, labels):
  """Returns the table of fields that differ between labels, and every configuration folded away."""
  firsts = {label: run.config for run, label in reversed(list(zip(runs, labels)))}
  firsts = {label: firsts[label] for label in dict.fromkeys(labels)}
  changed = runs_lib.differences(list(firsts.values()))
  if len(firsts) < len(runs):
    changed.pop('seed', None)
  rows = [html.row([key] + ['' if v is None else json.dumps(v) for v in values], code=True)
          for key, values in changed.items()]
  parts = [html.table(['field', *firsts], rows, 'text') if rows else
           html.note('All configurations are equal.') if len(firsts) > 1 else '']
  for label, config in firsts.items():
    parts.append(html.folded(f'{label}: whole configuration',
                             html.pre(json.dumps(config, indent=2, sort_keys=True))))
  return '\n'.join(parts)


def environment(runs):
  """Returns the table of env.json, a column per group of runs with the same environment."""
  groups = {}
  for run in runs:
    env = {key: value for key, value in run.env.items() if key not in ('command', 'name', 'parameters')}
    groups.setdefault(json.dumps(env, sort_keys=True), []).append(run)
  envs = [runs_lib.flatten(json.loads(text)) for text in groups]
  names = [', '.join(run.name for run in members) if len(members) < len(runs) else 'all runs'
           for members in groups.values()]
  rows = [html.row([key] + [html.plain(env.get(key, '')) for env in envs])
          for key in sorted(set().union(*envs))]
  return html.table(['', *names], rows, 'text')


def sample_section(name, sample):
  """Returns the routed text and the specialisation of every sparse layer of a run.

  Args:
    name:   of the run.
    sample: what `routing_view.sample` returned for it.
  """
  layers = [_layer(layer, routed, opened=at < 2) for at, (layer, routed) in enumerate(sample.items())]
  flows = [_flow(before, after, sample) for before, after in zip(list(sample), list(sample)[1:])]
  data = json.dumps({layer: dataclasses.asdict(routed) for layer, routed in sample.items()})
  return '\n'.join([
      f'<h3>{html.esc(name)}</h3>',
      html.note(HOW_TO_READ),
      f'<div class="layers">{"".join(layers)}</div>', *filter(None, flows),
      html.download('routing.json', data, 'this text with the experts of every token, as JSON')])


def _layer(layer, routed, opened):
  """A sparse layer: its experts, the routed text, what was dropped, what experts specialise in."""
  words = lambda best: '   '.join(f'{_quoted(piece)} ×{lift:.1f}' for piece, _, lift in best)
  rows = [html.row([str(e), f'{share:.1%}', words(best)], code=True)
          for e, (share, best) in enumerate(routed.table)]
  lost = ', '.join(f'{_quoted(piece)} ×{number}' for piece, number in spans.dropped(routed))
  return html.folded(
      layer, spans.chips([share for share, _ in routed.table]), spans.to_html(routed),
      html.note(f'Dropped: {lost}') if lost else '',
      html.folded('most typical tokens of each expert, with their over-representation',
                  html.table(['expert', 'share', 'tokens'], rows, 'text')),
      opened=opened)


def _flow(before, after, sample):
  """The flow of tokens between two layers of one stack, '' for others and for layers of too many experts."""
  first, second = sample[before], sample[after]
  if first.pieces != second.pieces or max(first.num_experts, second.num_experts) > spans.WIDEST:
    return ''
  return html.folded(
      f'from {before} to {after}', spans.flow_html(spans.flow(first, second)),
      html.note(f'A row is an expert of {before}, a column one of {after}. Colour: the share of the row.'))


def diagnosed_section(run):
  """Returns the tables and figures of what `stmoe routing` found in a run."""
  found, esc = run.routing, html.esc
  parts = [f'<h3>{esc(run.name)}</h3>', html.pre('\n'.join(diagnosed.lines(found)))]
  meanings = '; '.join(f'{heading}: {text}' for heading, text in diagnosed.COLUMNS.values())
  tables = {meanings: diagnosed.table(found),
            f'Against the choices at step {found["step"]:,}.': diagnosed.compared(found),
            'Allocation entropy by domain.': diagnosed.domains(found)}
  for note, (headings, rows) in tables.items():
    parts += [html.table(headings, [html.row(cells) for cells in rows]), html.note(note)] if rows else []
  parts += [html.figure(figure, f'{run.name}: {stem.replace("_", " ")}')
            for stem, figure in diagnosed.figures(found).items()]
  return '\n'.join(parts)


def _quoted(piece):
  return routing_view.visible(piece).replace(' ', '␣')
