"""Says what adapting the routers of a run to a prompt is worth for the text behind it (arXiv:2510.14853).

stmoe rewire runs/try                                        half of every evaluated row as prompt
stmoe rewire runs/try --prompt 64 --rows 256 --config.data.task=text --config.data.files=TEXT   another text
stmoe rewire runs/try --config.decode.steps=20 --config.decode.confident=1.0
stmoe infer runs/try prompts.txt --config.decode.name=rewire               texts that are written so

Prints bits per byte with and without, and with vectors of the same length in random directions. It also
prints how many of a token's experts are others.
"""

import json
import sys

from stmoe import errors
from stmoe import files
from stmoe import ranges
from stmoe import sections
from stmoe.cli import infer
from stmoe.derive import downloaded
from stmoe.runs import directory as rundir

COMPUTES = True
NAME = '--config.decode.name=rewire'


def add_arguments(parser):
  parser.add_argument('run', metavar='RUN', help='a run directory, a downloaded folder, or an experiment')
  parser.add_argument('--prompt', type=ranges.Count, metavar='N',
                      help='tokens of a row that are read first; default: half of data.length')
  parser.add_argument('--rows', type=ranges.Count, default=64, metavar='N', help='of evaluation data')
  parser.add_argument('--step', type=ranges.Natural, help='which checkpoint; default: the newest')
  parser.add_argument('--json', action='store_true', help='print everything as JSON')
  parser.set_defaults(overrides=())


def run(args):
  from stmoe.derive import foreseen
  foreseen.data(args.run, args.overrides)
  path = downloaded.run_directory(args.run)
  cfg = rundir.opened(path, args.step)
  decode = infer.strategy(cfg, [NAME, *args.overrides])
  if decode['name'] != 'rewire':
    raise errors.UserError(f'decode.name={decode["name"]}: stmoe rewire has one strategy; nearest: rewire')
  sections.present(cfg)
  from stmoe.answer import rewiring
  found = rewiring.measure(path, decode, args.prompt, args.rows, cfg, args.step,
                           say=lambda line: print(line, file=sys.stderr))
  print(json.dumps(files.plain(found)) if args.json else '\n'.join(_said(found)))


def _said(found):
  """The lines of what `rewiring.measure` returns."""
  from stmoe.analysis import table
  ways = list(found['texts'])
  yield table.plain(['bits per byte', *ways, 'rows improved'], [
      [part, *(f'{found[part][way]:.4f}' for way in ways), f'{found["improved"][part]:.0%}']
      for part in ('prompts', 'texts')])
  error = '' if found['gain_error'] is None else f' ± {found["gain_error"]:.4f}'
  yield (f'{found["rows"]} rows, {found["prompt"]} tokens of each as prompt; gain on texts '
         f'{found["gain"]:.4f}{error} bits per byte')
  yield table.plain(['layer', 'experts changed', 'of'], [
      [name, f'{found["changed"][name]:.3f}', f'{found["choices"][name]:.3f}'] for name in found['changed']])
  yield 'largest entries by router: ' + ', '.join(f'{value:.3f}' for value in found['largest'].values())
  yield (f'seconds a batch: {found["seconds"]["adapt"]:.2f} to adapt, {found["seconds"]["read"]:.2f} to read '
         'once')
