"""A row per run: size, cost and result, as text for terminals and pages."""

import math

import numpy as np

from stmoe.analysis import measures

# Column -> heading. Order is the order of the table.
HEADINGS = {
    'label': 'run', 'parameters': 'parameters', 'active': 'active', 'flops_per_token': 'FLOPs/token',
    'steps': 'steps', 'tokens': 'tokens', 'flops': 'train FLOPs', 'bits': 'bits/byte',
    'perplexity': 'perplexity', 'accuracy': 'accuracy', 'experts': 'experts/token', 'drops': 'drops',
    'eval_drops': 'eval drops',
    'balance': 'max load', 'entropy': 'entropy', 'time': 'training', 'slowdown': 'step/dense',
}

# Column -> key of a metrics line.
METRICS = {'bits': 'eval/bits_per_byte', 'perplexity': 'eval/perplexity', 'accuracy': 'eval/accuracy',
           'eval_drops': 'eval/drop_frac', 'tokens': 'tokens', 'flops': 'flops', 'time': 'time',
           'steps': 'step'}
# Of training batches, whose values vary from batch to batch: mean over the last quarter of a run.
LATE = {'experts': 'moe/active_experts', 'drops': 'moe/drop_frac', 'balance': 'moe/max_load_ratio',
        'entropy': 'moe/load_entropy'}


def cost(config):
  """Returns dict(parameters, active, flops_per_token, flops_per_step) of a configuration.

  flops_per_token: active, forward; flops_per_step: active, forward and backward, of a whole batch.
  """
  from stmoe.analysis import flops
  size, work = flops.parameters(config), flops.active_per_token(config)
  positions = config.train.batch_size * flops.lengths(config)['decoder']
  return dict(parameters=size['total'], active=size['active'], flops_per_token=work['forward'],
              flops_per_step=work['train'] * positions)


def values(run, cost=None):
  """Returns dict column -> number (or None) of a run; columns of its target's own are called 'eval/...'.

  Args:
    run:  Run.
    cost: dict(parameters, active, flops_per_token) of its model, or None.
  """
  numbers = {column: run.last(key) for column, key in METRICS.items()}
  numbers |= {name: run.last(name) for name in _own(run)}
  for column, key in LATE.items():
    late = run.series(key)[1]
    numbers[column] = float(np.mean(late[-max(len(late) // 4, 1):])) if len(late) else None
  return {**dict(parameters=None, active=None, flops_per_token=None), **(cost or {}), **numbers}


def _own(run):
  """The 'eval/...' metrics of a run's target that are no column yet; a perplexity stands for its loss."""
  mine = measures.of(run)
  shown = [*METRICS.values()] + ['eval/loss'] * ('eval/perplexity' in mine)
  return [name for name in mine if name.startswith('eval/') and name not in shown]


def group(rows, labels):
  """Returns dict label -> dict column -> (mean, standard deviation over seeds, number of seeds).

  The deviation is the sample's (n-1); 0.0 for a single seed. A column unknown for a seed is None.
  """
  grouped = {}
  for label in dict.fromkeys(labels):
    mine = [row for row, name in zip(rows, labels) if name == label]
    grouped[label] = {}
    for column in dict.fromkeys(column for row in mine for column in row):
      numbers = [row.get(column) for row in mine]
      complete = all(n is not None for n in numbers)
      spread = float(np.std(numbers, ddof=1)) if complete and len(numbers) > 1 else 0.0
      grouped[label][column] = (float(np.mean(numbers)), spread, len(numbers)) if complete else None
  _add_slowdown(grouped, rows, labels)
  return grouped


def _add_slowdown(grouped, rows, labels):
  """Adds column 'slowdown': time per step over that of the dense run at the same place among the seeds.

  The dense run is the first run without expert load; without such a run there is no column.
  """
  dense = [label for label, row in grouped.items() if row.get('balance') is None]
  if not dense:
    return
  mine = lambda label: [r['time'] / r['steps'] if r.get('time') and r.get('steps') else None
                        for r, name in zip(rows, labels) if name == label]
  for label, row in grouped.items():
    pairs = list(zip(mine(label), mine(dense[0])))
    ratios = [a / b for a, b in pairs if a and b]
    spread = float(np.std(ratios, ddof=1)) if len(ratios) > 1 else 0.0
    row['slowdown'] = (float(np.median(ratios)), spread, len(ratios)) if len(ratios) == len(pairs) else None


def cells(grouped):
  """Returns (headings, rows of texts) of `group`'s answer, without columns that nobody has."""
  own_columns = [column for row in grouped.values() for column in row if column.startswith('eval/')]
  all_columns = dict.fromkeys([*HEADINGS, *own_columns])
  columns = [c for c in all_columns if c != 'label' and any(row.get(c) for row in grouped.values())]
  rows = [[label] + [text(column, row.get(column)) for column in columns] for label, row in grouped.items()]
  return [HEADINGS.get(c, c.removeprefix('eval/')) for c in ('label', *columns)], rows


def text(column, entry):
  """Returns the text of a cell; mean ± deviation where there are several seeds."""
  if entry is None:
    return '–'
  mean, spread, seeds = entry
  if column == 'time':
    return duration(mean)
  if column in ('drops', 'eval_drops', 'accuracy'):
    return f'{mean:.1%}'
  if column == 'bits':
    return f'{mean:.3f} ± {spread:.3f}' if seeds > 1 else f'{mean:.3f}'
  if column in ('perplexity', 'experts', 'balance', 'entropy', 'slowdown'):
    return f'{mean:.2f}'
  return f'{mean:.0f}' if column == 'steps' else engineering(mean)


def engineering(number):
  """Returns '1.24M' for 1,240,000: three digits and a prefix of thousands.

  >>> engineering(999), engineering(1240000), engineering(2.5e12), engineering(999_999)
  ('999', '1.24M', '2.5T', '1M')
  """
  number = float(f'{number:.3g}')        # before its power is known: rounding may reach the next
  power = min(max(math.floor(math.log10(abs(number)) / 3), 0), 6) if number else 0
  return f'{number / 1000 ** power:.3g}' + ('', 'k', 'M', 'G', 'T', 'P', 'E')[power]


def duration(seconds):
  """Returns '1 h 05 min', '2 min 03 s' or '12 s'."""
  seconds = round(seconds)
  if seconds >= 3600:
    return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'
  return f'{seconds // 60} min {seconds % 60:02d} s' if seconds >= 60 else f'{seconds} s'


def plain(headings, rows):
  """Returns the table as aligned lines of text, first column left, other columns right."""
  widths = [max(len(line[i]) for line in (headings, *rows)) for i in range(len(headings))]

  def line(texts):
    return '  '.join([texts[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(texts[1:], widths[1:]))])
  return '\n'.join([line(headings), '  '.join('-' * w for w in widths), *map(line, rows)])
