"""The model card of an exported run: README.md with its sizes, its results, its ancestry and the commands."""

from collections.abc import Iterator
import pathlib

import ml_collections

import stmoe
from stmoe.analysis import flops
from stmoe.data import record
from stmoe.runs import lineage
from stmoe.runs import read
from stmoe.runs import records

FILE = 'README.md'


def text(run: pathlib.Path, cfg: ml_collections.ConfigDict, family: str, architecture: str, step: int) -> str:
  """Returns the card of the checkpoint of `step` of run directory `run`, in Markdown.

  Results are those that the run recorded of this checkpoint; nothing is evaluated here.

  Args:
    cfg:    the configuration that is exported.
    family: name of the family; architecture: of its class in transformers.
  """
  name = run.resolve().name
  front = ['---', 'library_name: transformers', 'tags:', '- mixture-of-experts', f'- {family}', '---']
  parts = ['\n'.join(front), f'# {name}',
           f'`{architecture}`, written by stmoe {stmoe.__version__} from step {step:,} of the run `{name}`.',
           _table(('size', ''), _sizes(run, cfg, step)), '## Results', *_results(run, step)]
  if ancestry := list(lineage.lines(run, lambda parent: pathlib.PurePath(parent).name)):
    parts += ['## Ancestry', _block('', ancestry)]
  made = dict.fromkeys([*lineage.commands(run), *filter(None, [lineage.command()])])
  if made:
    parts += ['## Commands', _block('sh', made)]
  return '\n\n'.join(parts) + '\n'


def _sizes(run, cfg, step):
  """Rows of the model's parameters, and of what the run trained them on."""
  size = flops.parameters(record.read(run).located(cfg))
  rows = [('parameters', f'{size["total"]:,}'), ('active parameters of a token', f'{size["active"]:,}'),
          ('training steps', f'{step:,}' + (' since the import' if records.imported(run) else ''))]
  lines = [line for line in read.read_lines(run) if line['step'] <= step and line.get('tokens')]
  return rows + ([('trained tokens', f'{int(lines[-1]["tokens"]):,}')] if lines else [])


def _results(run, step) -> Iterator[str]:
  """The tables of evaluations, of tasks and of sweeps at `step`; a sentence where there are none."""
  own = [line for line in read.read_lines(run) if line['step'] == step]
  tasks = [found['scores'] for found in records.scores(run) if found['step'] == step]
  swept = [line for line in records.evaluations(run) if line['step'] == step]
  if own := [row for line in own for row in _evaluated(line)]:
    yield _table(('evaluation', 'value'), own)
  if scores := [row for found in tasks for row in found.items() if row[1] is not None]:
    yield _table(('task', 'score'), [(name, f'{value:.2f}') for name, value in scores])
  if swept := [(f'{line["field"]}={line["value"]}', *row) for line in swept for row in _evaluated(line)]:
    yield _table(('with', 'evaluation', 'value'), swept)
  if not (own or scores or swept):
    yield 'No evaluation of this checkpoint was recorded.'


def _evaluated(line):
  """(name, value) of the metrics of an evaluation in a line of metrics."""
  return [(name.removeprefix('eval/'), f'{value:.6g}') for name, value in line.items()
          if name.startswith('eval/') and records.is_number(value)]


def _table(headings, rows):
  """A table of Markdown."""
  line = lambda cells: f'| {" | ".join(str(cell).replace("|", " ") for cell in cells)} |'
  return '\n'.join([line(headings), line(['---'] * len(headings)), *map(line, rows)])


def _block(kind, lines):
  """A block of code in Markdown."""
  return '\n'.join([f'```{kind}', *(line.replace('```', '') for line in lines), '```'])
