"""Fits a scaling law to a table of runs: coefficients with intervals, error on held-out runs, figures.

stmoe fit runs.csv --law clark --hold-out 1 --out fit         columns n_dense, experts, loss
stmoe fit runs/mysweep --law clark                            the table that `sweep --report` wrote there
stmoe fit runs.csv --law chinchilla --column n=parameters
stmoe fit runs.csv --law power --column x=flops --by router   a line for each router
stmoe fit runs.csv --law clark --fix e_start=1.847 --fix e_max=314.478

A row of the table is a finished run; losses are in nats per token (`loss`, else `eval/loss`). A law is a
file of stmoe/analysis/scaling/laws; what its columns mean: stmoe/analysis/scaling/columns.py.
"""

import json
import pathlib
import re

from stmoe import errors
from stmoe import ranges


def add_arguments(parser):
  parser.add_argument('table', metavar='TABLE.csv', type=pathlib.Path, help='or a folder with results.csv')
  parser.add_argument('--law', required=True, help='clark, fine_grained, joint, chinchilla or power')
  parser.add_argument('--column', action='append', default=[], metavar='NAME=HEADING',
                      help='a column of the law that has another heading in the table')
  parser.add_argument('--by', metavar='HEADING', help='fit the rows of each value of this column apart')
  parser.add_argument('--fix', action='append', default=[], metavar='NAME=VALUE',
                      help='a coefficient that is not fitted')
  parser.add_argument('--hold-out', type=ranges.Natural, default=0, metavar='N',
                      help='predict the N largest configurations from the others (default: 0)')
  parser.add_argument('--bootstrap', type=ranges.Natural, default=200, metavar='N',
                      help='fits to resampled residuals, for intervals; 0 for none (default: 200)')
  parser.add_argument('--seed', type=ranges.Seed, default=0, help='of the bootstrap (default: 0)')
  parser.add_argument('--out', metavar='DIR', type=pathlib.Path, help='write fit.json and the figures here')


def run(args):
  from stmoe import lookup
  from stmoe.analysis.scaling import columns
  from stmoe.analysis.scaling import study
  from stmoe.analysis.scaling import summary

  law = lookup.module('law', args.law)
  if 0 < args.bootstrap < study.LEAST:
    raise errors.UserError(f'--bootstrap {args.bootstrap} is too few for intervals; nearest: 0, '
                           f'{study.LEAST}')
  fixed = {name: ranges.Any.typed(f'--fix {name}', value) for name, value in _pairs('fix', args.fix).items()}
  headings = _pairs('column', args.column)
  groups = columns.read(args.table, [*law.COLUMNS, columns.LOSS], headings, args.by)
  studies = {}
  for group, table in groups.items():
    try:
      studies[group] = study.study(args.law, law, table, args.hold_out, args.bootstrap, fixed, args.seed,
                                   headings)
    except errors.UserError as error:
      raise errors.UserError(f'{args.table}{f", {args.by}={group}" if args.by else ""}: {error}') from error
  for group, group_study in studies.items():
    print('\n'.join([f'\n{args.by}={group}'] * bool(args.by) + summary.lines(group_study)))
    if args.out:
      _write(args.out / re.sub(r'[^\w.=-]+', '_', group), group_study)


def _pairs(flag, words):
  """Dict of the words NAME=VALUE of a flag."""
  for word in words:
    if not all(word.partition('=')):
      raise errors.UserError(f'--{flag} {word}: write NAME=VALUE')
  return {name: value for name, _, value in (word.partition('=') for word in words)}


def _write(folder, study):
  """Writes fit.json and every figure of a study; says where."""
  from stmoe.analysis import canvas
  from stmoe.analysis.scaling import figures
  from stmoe.analysis.scaling import summary
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(summary.content(study), indent=1, allow_nan=False)
  (folder / 'fit.json').write_text(text + '\n', encoding='utf-8')
  print(f'Numbers  {folder / "fit.json"}')
  for stem, figure in figures.draw(study).items():
    png, _ = canvas.save(figure, folder, stem)
    print(f'Figure   {png} and .svg')
