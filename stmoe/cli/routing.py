"""Says what the routers of a run do: entropies, margins, co-activation, likeness, what choices are worth.

stmoe routing runs/try                                       the newest checkpoint, on the evaluation data
stmoe routing runs/try --against 500,1000                    how its choices differ from those at these steps
stmoe routing runs/try --against all                         from those of every checkpoint that was kept
stmoe routing runs/try --domain code=a.py --domain prose=b.txt     use of experts by domain
stmoe routing runs/vmoe                                      of images: where patches go, by class
stmoe routing DOWNLOADED --config.data.files=TEXT            a downloaded model on a text of yours

Prints tables and writes RUN/routing.json and RUN/plots/routing*.png; `stmoe report` shows them. A dash is a
number without meaning, such as the margin of a single choice. Imported models are read as trained ones are.
"""

import json
import sys

from stmoe import errors
from stmoe import files
from stmoe import ranges
from stmoe.derive import downloaded
from stmoe.runs import records

COMPUTES = True


def add_arguments(parser):
  parser.add_argument('run', metavar='RUN', help='a run directory, a downloaded folder, or an experiment')
  parser.add_argument('--step', type=ranges.Natural, help='which checkpoint; default: the newest')
  parser.add_argument('--against', metavar='STEPS', default='', help='steps to compare with: 500,1000 or all')
  parser.add_argument('--domain', metavar='NAME=FILE', action='append', default=[],
                      help='UTF-8 text of a domain, of which the use of experts is shown')
  parser.add_argument('--temperatures', metavar='T,T', default='0.1,10',
                      help='that router logits are divided by')
  parser.add_argument('--batches', type=ranges.Count, default=8, metavar='N', help='of evaluation')
  parser.add_argument('--json', action='store_true', help='print everything as JSON')
  parser.set_defaults(overrides=())


def run(args):
  every = args.against == 'all'
  against = None if every else ranges.Many(ranges.Natural).typed('--against', args.against)
  temperatures = ranges.Many(ranges.Positive, 1).typed('--temperatures', args.temperatures)
  texts = dict(_domain(text) for text in args.domain)
  from stmoe.derive import foreseen
  foreseen.data(args.run, args.overrides)
  path = downloaded.run_directory(args.run)
  from stmoe.analysis import canvas
  from stmoe.analysis.routing import diagnosed
  from stmoe.answer import routing
  found = files.plain(routing.diagnose(path, args.step, against, texts, temperatures, args.batches,
                                       lambda line: print(line, file=sys.stderr), overrides=args.overrides))
  files.write_json(path / records.ROUTING, found)
  for stem, figure in diagnosed.figures(found).items():
    canvas.save(figure, path / 'plots', stem)
  print(json.dumps(found) if args.json else '\n'.join(_said(found, path)))


def _domain(text):
  """(name, text) of the file that NAME=FILE names."""
  name, equals, file = text.partition('=')
  if not (name and equals and file):
    raise errors.UserError(f'--domain {text}: write NAME=FILE, for example code=a.py')
  found = files.read_text(file)
  if not found:
    raise errors.UserError(f'--domain {text}: {file} is empty')
  return name, found


def _said(found, path):
  from stmoe.analysis import table
  from stmoe.analysis.routing import diagnosed
  tables = [diagnosed.table(found)]
  tables += [diagnosed.compared(found)] if found['against'] else []
  tables += [diagnosed.domains(found)] if found['domains'] else []
  texts = [table.plain(headings, rows) for headings, rows in tables]
  return ['\n\n'.join(texts), '', *diagnosed.lines(found), f'all of it: {path / records.ROUTING}']
