"""Finds the best routes of a run of big and small modules by trying all, beside its router and random ones.

stmoe routes runs/duo                  oracle losses at every budget, the best fixed and the best random route
stmoe routes runs/duo --rows 8 --draws 0 --default small

An oracle sees the next token: its loss is a bound that no router reaches, and low by chance where there are
many routes. Beside it stands the loss by the route that was the oracle's for the token before. Losses are in
nats a token.
"""

import json
import sys

from stmoe import files
from stmoe import ranges
from stmoe.derive import downloaded

COMPUTES = True


def add_arguments(parser):
  parser.add_argument('run', metavar='RUN', help='a run directory, a downloaded folder, or an experiment')
  parser.add_argument('--step', type=ranges.Natural, help='which checkpoint; default: the newest')
  parser.add_argument('--rows', type=ranges.Count, default=4, metavar='N', help='of evaluation data')
  parser.add_argument('--draws', type=ranges.Natural, default=100, metavar='N',
                      help='random routes of every budget')
  parser.add_argument('--default', choices=('big', 'small'), default='big',
                      help='module of other tokens while one tries its routes')
  parser.add_argument('--json', action='store_true', help='print everything as JSON')


def run(args):
  path = downloaded.run_directory(args.run)
  from stmoe.analysis import table
  from stmoe.answer import routes
  found = files.plain(routes.search(path, args.step, args.rows, args.draws, args.default,
                                    say=lambda line: print(line, file=sys.stderr)))
  if args.json:
    print(json.dumps(found))
    return
  number = lambda value: '–' if value is None else f'{value:.4f}'
  rows = [[str(one['m']), *(number(one[key]) for key in ('oracle', 'at_most', 'before', 'fixed', 'random')),
           ' '.join(f'{share:.2f}' for share in one['big_share'])] for one in found['budgets']]
  print(table.plain(['big layers', 'oracle', 'at most', 'of the token before', 'best fixed', 'best random',
                     'big by layer'], rows))
  print(f"{found['tokens']} tokens; the router as it evaluates: {found['learned']:.4f} with "
        f"{found['learned_big']:.0%} big")
