"""Writes one self-contained HTML page about some runs: results, figures, where tokens go, environment.

stmoe report runs/switch
stmoe report runs/dense runs/switch -o report.html --text FILE
"""

import pathlib
import sys

from stmoe import errors


def add_arguments(parser):
  parser.add_argument('runs', nargs='+', metavar='RUN', help='a run directory, finished or still running')
  parser.add_argument('-o', '--out', metavar='FILE', type=pathlib.Path,
                      help='the page; RUN/report.html for one run, ./report.html for several')
  parser.add_argument('--text', metavar='FILE', type=pathlib.Path,
                      help='UTF-8 text to show routed, in place of the start of the validation data')


def run(args):
  from stmoe.analysis import report
  from stmoe.analysis import runs
  from stmoe.analysis import table
  from stmoe.train import rundir
  found = runs.read_all(args.runs)
  out = args.out or (found[0].path / 'report.html' if len(found) == 1 else pathlib.Path('report.html'))
  text = _read(args.text) if args.text else None
  costs = {one.name: table.cost(rundir.load(one.path)) for one in found}
  samples = routed(found, [one.name for one in found], out.parent / 'plots', text)
  title = ', '.join(one.name for one in found)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(report.page(found, costs, routed=samples, title=title), encoding='utf-8')
  print(f'{out}  ({out.stat().st_size / 1e6:.1f} MB, needs no other file)')


def routed(runs, labels, folder, text=None):
  """Returns dict label -> `routing_view.sample` of the first run of each label that has sparse layers.

  Draws each as `folder`/routed_<label>.png and .svg too. Runs without a checkpoint are left out.

  Args:
    text: what to show; the start of the validation data when None.
  """
  from stmoe.analysis import canvas
  from stmoe.analysis import routing
  from stmoe.analysis import routing_view
  from stmoe.train import rundir
  samples = {}
  for one, label in zip(runs, labels):
    if label in samples or not one.loads or not any((one.path / 'checkpoints').glob('[0-9]*')):
      continue
    if 'vocab' not in rundir.load(one.path).data:                    # a model of images reads no text
      continue
    print(f'routing a text through {label}', file=sys.stderr, flush=True)
    model, batch, vocabulary = _open(one.path, text)
    chosen = routing.choices(model, batch)
    if not chosen:
      continue
    samples[label] = routing_view.sample(chosen, batch, vocabulary)
    canvas.save(routing_view.figure(samples[label]), folder, f'routed_{label.replace("/", "_")}')
  return samples


def _open(path, text):
  """(model of the newest checkpoint, batch to route, vocabulary) of a run directory."""
  from stmoe.data import pipeline
  from stmoe.train import interactive
  model, config, vocabulary = interactive.opened(path)
  batch = pipeline.eval_batches(config)[0] if text is None else interactive.batch(config, vocabulary, text)
  return model, batch, vocabulary


def _read(path):
  try:
    text = path.read_text(encoding='utf-8')
  except OSError as error:
    raise errors.UserError(f'--text {path}: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise errors.UserError(f'--text {path} is not UTF-8') from error
  if not text:
    raise errors.UserError(f'--text {path} is empty')
  return text
