"""Writes one self-contained HTML page about runs: leaderboard, verdicts, figures, where tokens go, commands.

stmoe report runs/switch
stmoe report runs/dense runs/switch -o report.html --text FILE
stmoe report runs/momentum runs/hash_routing       all runs in these folders, of sweeps or comparisons
stmoe report DOWNLOADED --text FILE                a downloaded folder; the page is beside its conversion
stmoe report runs/zoo --table zoo.tex              only the table, for LaTeX; .csv and .md as well

Runs that differ in their seed alone are one row. Runs of a sweep of experiments/ come with its verdicts.
"""

import pathlib
import shlex
import sys

from stmoe import errors
from stmoe import files
from stmoe import ranges
from stmoe import silence
from stmoe.derive import downloaded


def add_arguments(parser):
  parser.add_argument('runs', nargs='+', metavar='RUN',
                      help='a run directory, a folder of some, or a downloaded folder')
  parser.add_argument('-o', '--out', metavar='FILE', type=pathlib.Path,
                      help='the page; report.html in RUN if only one is named, else here')
  parser.add_argument('--text', metavar='FILE', type=pathlib.Path,
                      help='UTF-8 text to show routed, in place of the start of the validation data')
  parser.add_argument('--routed', metavar='N', type=ranges.Natural, default=4,
                      help='how many models, the best first, a text is routed through (default: 4)')
  parser.add_argument('--table', metavar='FILE', type=pathlib.Path,
                      help='only the table of results, as FILE.csv, FILE.md or FILE.tex')
  parser.add_argument('--sweep', metavar='FILE', action='append', default=[],
                      help='a sweep.py of your own that runs belong to, for its verdicts')


def run(args):
  from stmoe.analysis.report import export
  from stmoe.analysis.report import leaderboard
  from stmoe.analysis.report import report
  from stmoe.runs import directory as rundir
  from stmoe.runs import read as runs
  from stmoe.sweep import questions
  if args.table and args.table.suffix not in export.FORMS:
    raise errors.UserError(f'--table {args.table}: a table ends in {", ".join(export.FORMS)}')
  if args.table:
    files.check_place('--table', args.table)
  text = _read(args.text) if args.text else None
  named = [downloaded.resolved(path) for path in args.runs]
  readable = runs.read_all(runs.expand(named), check=rundir.trusted)
  labels = runs.labels(readable)
  if args.table:
    headings, rows = leaderboard.columns(readable, _costs(readable), labels)
    files.write_text(args.table, export.FORMS[args.table.suffix](headings, list(rows.values())))
    print(args.table)
    return
  out = args.out or (named[0] if len(named) == 1 else pathlib.Path()) / 'report.html'
  verdicts = questions.of(readable, args.sweep)
  shown = report.best(readable, labels)[:args.routed]
  some = [(drawn, label) for drawn, label in zip(readable, labels) if label in shown]
  samples = routed([drawn for drawn, _ in some], [label for _, label in some], out.parent / 'plots', text)
  title = ', '.join(pathlib.Path(name).resolve().name for name in args.runs)
  out.parent.mkdir(parents=True, exist_ok=True)
  _say('drawing figures and writing the page')
  page = report.page(readable, _costs(readable), labels, samples, title, verdicts, _command())
  files.write_text(out, page)
  print(f'{out}  ({out.stat().st_size / 1e6:.1f} MB, needs no other file)')


def _costs(found):
  """dict run name -> the cost of its model, which runs of other seeds share."""
  import json

  from stmoe.analysis import table
  from stmoe.data import record
  from stmoe.runs import directory as rundir
  cost_of, costs, tell = {}, {}, silence.telling(_say)
  for run in (run for run in found if rundir.saved(run.path)):       # which vouch for the configuration
    tell(f'cost of {run.name}')
    model = json.dumps(run.config | {'seed': 0}, sort_keys=True)
    if model not in cost_of:
      try:
        cost_of[model] = table.cost(record.read(run.path).located(rundir.load(run.path)))
      except errors.UserError as error:
        cost_of[model] = None
        print(f'note: no cost of {run.name}: {error}', file=sys.stderr)
    if cost_of[model]:
      costs[run.name] = cost_of[model]
  return costs


def _say(line):
  print(line, file=sys.stderr, flush=True)


def _command():
  """The command line that was typed."""
  words = sys.argv[1:] if sys.argv[1:2] == ['report'] else ['report', '...']
  return shlex.join(['stmoe', *words])


def routed(runs, labels, folder, text=None):
  """Returns dict label -> `routing_view.sample` of the first run of each label that has sparse layers.

  Draws each as `folder`/routed_<label>.png and .svg too. Runs without a checkpoint are left out.

  Args:
    text: what to show; the start of the validation data when None.
  Raises:
    UserError: no run can show `text`, which was asked for; the error says why the first run cannot.
  """
  from stmoe.analysis import canvas
  from stmoe.analysis.routing import choices as routing
  from stmoe.analysis.routing import text as routing_view
  from stmoe.runs import directory as rundir
  samples, refusals = {}, []
  for run, label in zip(runs, labels):
    sparse = run.loads or text is not None and (run.path / 'imported.json').is_file()
    if label in samples or not sparse or not rundir.saved(run.path):
      continue
    if 'vocab' not in rundir.load(run.path).data:                    # a model of images reads no text
      continue
    print(f'routing a text through {label}', file=sys.stderr, flush=True)
    try:
      model, batch, vocabulary = _open(run.path, text)
    except errors.UserError as error:
      print(f'note: no routed text of {label}: {error}', file=sys.stderr)
      refusals.append(error)
      continue
    chosen = routing.choices(model, batch)
    if not chosen:
      continue
    samples[label] = routing_view.sample(chosen, batch, vocabulary)
    canvas.save(routing_view.figure(samples[label]), folder, f'routed_{label.replace("/", "_")}')
  if refusals and text is not None and not samples:
    raise refusals[0]
  return samples


def _open(path, text):
  """(model of the newest checkpoint, batch to route, vocabulary) of a run directory."""
  from stmoe.answer import interactive
  from stmoe.data import batches as pipeline
  model, config, vocabulary = interactive.opened(path)
  if text is not None:
    return model, interactive.batch(config, vocabulary, text), vocabulary
  opened = pipeline.source(config, path)
  for line in opened.notes:
    print(f'{path}: {line}', file=sys.stderr)
  return model, pipeline.eval_batches(config, opened=opened)[0], vocabulary


def _read(path):
  text = files.read_text(path)
  if not text:
    raise errors.UserError(f'--text {path} is empty')
  return text
