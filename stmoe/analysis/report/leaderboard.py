"""The table at the head of a report: a row a configuration, its seeds averaged, the best result first."""

import json
import math

import numpy as np

from stmoe import lookup
from stmoe.analysis import measures
from stmoe.analysis import table
from stmoe.analysis import verdict
from stmoe.analysis.report import page
from stmoe.runs import read as runs_lib

# Column -> heading, where `table` has none; results come with their spread.
HEADINGS = table.HEADINGS | {'method': 'method', 'data': 'data', 'seeds': 'seeds'}
# The columns that a page shows at first, with the result of the target.
MAIN = ('run', 'data', 'bits/byte', 'drops', 'eval drops', 'max load', 'parameters', 'active', 'step/dense')
MEANINGS = {
    'run': 'name of the run, or of its configuration where several seeds were trained',
    'method': 'routers of the sparse layers, and what is around them',
    'data': 'task and vocabulary', 'seeds': 'runs that differ in their seed alone, and are finished',
    'bits/byte': 'validation loss in bits per byte of text; lower is better',
    'accuracy': 'share of validation targets that the model ranks first',
    'perplexity': 'e to the power of the validation loss per token',
    'drops': 'share of token choices in training that no expert had room for, mean of the last quarter',
    'eval drops': 'the same share over the validation data',
    'max load': 'tokens of the fullest expert over the mean of its layer in training; 1 is balanced',
    'entropy': 'of the load of a layer, over its logarithm of experts; 1 is balanced',
    'experts/token': 'experts that computed a token, mean of the last quarter of training',
    'parameters': 'all parameters', 'active': 'parameters that compute a token',
    'FLOPs/token': 'active FLOPs of a forward pass per token', 'steps': 'optimizer steps',
    'tokens': 'target tokens of training', 'train FLOPs': 'active FLOPs of the whole training',
    'training': 'time of training, without compiling, evaluation and saving',
    'step/dense': 'time of a step over that of the dense run of the same seed, median',
}
SPREAD = {'loss': '.4f', 'bits': '.3f', 'accuracy': '.1%'}
# What of the data makes no other text.
ASIDE = ('cache_dir', 'shuffle', 'pack')


def columns(runs, costs, labels):
  """Returns (headings, dict label -> list of page.Cell), the lowest loss first.

  Where some seeds are done, unfinished seeds do not count. Runs on other data make other tables under the
  same heading: the tables come after one another, and a column says which data. A value that no run has makes
  no column.

  Args:
    runs:   list of Run.
    costs:  dict run name -> dict(parameters, active, flops_per_token), where known.
    labels: a label for each run; runs of equal label are seeds of one another.
  """
  members = {label: [run for run, name in zip(runs, labels) if name == label] for label in labels}
  scores = list(dict.fromkeys(key for run in runs for key in run.done or {} if '@' in key))
  counted = [(run, label) for label, mine in members.items()
             for run in [run for run in mine if run.done is not None] or mine]
  rows = [_values(run, costs.get(run.name), scores) for run, _ in counted]
  grouped = table.group(rows, [label for _, label in counted])
  own_scores = dict.fromkeys(c for row in rows for c in row if c.startswith('eval/') and c != 'eval/loss')
  order = ['method', 'data', 'seeds', 'bits', 'loss', 'accuracy', *own_scores, *scores, 'drops', 'eval_drops',
           'parameters', 'active', 'flops_per_token', 'experts', 'balance', 'entropy', 'steps', 'tokens',
           'flops', 'time', 'slowdown']
  texts = {label: _words(mine) for label, mine in members.items()}
  same_data = len({data(mine[0]) for mine in members.values()}) == 1
  order.remove('data' if same_data else 'slowdown')
  shown = [c for c in order if any(c in texts[label] or grouped[label].get(c) for label in grouped)]
  best = _best(members, grouped)
  loss = lambda label: (grouped[label].get('loss') or (math.inf,))[0]
  ranked = sorted(grouped, key=lambda label: (data(members[label][0]), loss(label)))
  cell = lambda label, c: (texts[label][c] if c in texts[label] else
                           number(c, grouped[label].get(c), 'best' if (label, c) in best else ''))
  unit = measures.unit(runs).removesuffix(' per token')
  headings = HEADINGS | dict(loss=f'loss ({unit})' if unit else 'loss')
  return ([headings['label'], *(headings.get(c, c.split('/')[-1]) for c in shown)],
          {label: [page.Cell(label, label), *(cell(label, c) for c in shown)] for label in ranked})


def _values(run, cost, scores):
  """The numbers of a run: the numbers of `table`, the loss, and the scores of decoded texts, keys of DONE."""
  return table.values(run, cost) | {'loss': run.last('eval/loss')} | {
      key: (run.done or {}).get(key) for key in scores}


def _words(runs):
  """The cells of the seeds of a configuration that are no means."""
  num_done = sum(run.done is not None for run in runs)
  seeds = f'{num_done}' if num_done == len(runs) else f'{num_done} of {len(runs)}'
  name = method(runs[0].config)
  return dict(method=page.Cell(name, name, 'words'), seeds=page.Cell(seeds, num_done),
              data=page.Cell(corpus(runs[0].config), corpus(runs[0].config)))


def _best(members, grouped):
  """The (label, column) of the lowest loss on each text, where seeds tell that loss from all other losses.

  It is told if the 95 % interval of the difference to each other configuration does not hold zero.
  """
  best_cells = set()
  for text in {data(mine[0]) for mine in members.values()}:
    losses = {label: {run.config.get('seed', 0): run.last('eval/loss') for run in mine}
              for label, mine in members.items() if data(mine[0]) == text and grouped[label].get('loss')}
    if len(losses) > 1:
      label = min(losses, key=lambda label: grouped[label]['loss'][0])
      others = [verdict.interval(losses[other], losses[label]) for other in losses if other != label]
      if all(effect - half > 0 for effect, half, *_ in others):
        best_cells |= {(label, 'bits'), (label, 'loss')}
  return best_cells


def number(column, entry, kind=''):
  """Returns the page.Cell of (mean, spread, seeds) or None in a column of `table` or of this file."""
  if entry is None or not np.isfinite(entry[0]):
    return page.Cell('–')
  mean, spread, seeds = entry
  form, known = SPREAD.get(column) or ('.2f' if '@' in column else None), spread if seeds > 1 else None
  if not form:
    return page.Cell(table.text(column, entry), mean, kind, known)
  return page.Cell(f'{mean:{form}} ± {spread:{form}}' if seeds > 1 else f'{mean:{form}}', mean, kind, known)


def method(config):
  """Returns what the layers of a run's `config` are, but for dense layers: routers and what is around them.

  >>> method(dict(blocks=dict(d=dict(layer='dense'), m=dict(layer='moe', router=dict(name='switch')))))
  'switch'
  """
  names = []
  for block in config.get('blocks', {}).values():
    layers = list(lookup.nested(block)) if isinstance(block, dict) else []
    around = [kind for kind in (layer.get('layer') or layer['name'] for layer in layers) if kind != 'moe']
    routers = [router['name'] for layer in layers for router in lookup.nested(layer.get('router'))]
    if routers or around != ['dense']:
      names.append(' '.join([*around, *routers]))
  return ', '.join(dict.fromkeys(names)) or 'dense'


def corpus(config):
  """Returns the task and vocabulary of a run's `config` in a few words."""
  fields = config.get('data', {})
  names = (entry if isinstance(entry, str) else entry[0] for entry in fields.get('mixture') or ())
  task = ', '.join(sorted(names)) or str(fields.get('task') or fields.get('source', '?'))
  return ' '.join([task, *([fields['vocab']] if fields.get('vocab') else [])])


def data(run):
  """Returns what the losses of runs must share to be compared; a field that is off may be absent."""
  fields = {key: value for key, value in run.config.get('data', {}).items() if key not in ASIDE and value}
  kind = run.config.get('loss', {}).get('name', lookup.UNNAMED['target'])
  return corpus(run.config), kind, json.dumps(runs_lib.flatten(fields), sort_keys=True)
