"""The experiments that runs belong to, with the verdicts of what is done: what a report page says of them.

A sweep file is code. The name in sweep.json finds only files of experiments/. Any other file has to be
named by who asks.
"""

import sys

from stmoe import errors
from stmoe import experiment
from stmoe import plugins
from stmoe.analysis.report import report
from stmoe.sweep import collect
from stmoe.sweep import conclude
from stmoe.sweep import origin
from stmoe.sweep import plan


def of(runs, named=()):
  """Returns the report.Questions of the experiments that `runs` (analysis.runs.Run) belong to.

  Args:
    named: sweep files, or names, that are asked for beside the entries in the folders of the runs.
  """
  questions, paths = [], {run.path.resolve() for run in runs}
  for workdir in sorted({path.parent for path in paths}):
    entries = [one for one in _recorded(workdir) if one['sweep'].partition(':')[0] in plan.available()]
    entries += [dict(sweep=where, overrides=[]) for where in named]
    for entry in entries:
      try:
        sweep = plan.load(entry['sweep'], entry['overrides'], workdir)
      except errors.UserError as error:
        if entry['sweep'] in named:
          raise
        print(f'no verdicts of {entry["sweep"]}: {error}', file=sys.stderr)
        continue
      mine = [one for one in sweep.runs if one.workdir.resolve() in paths and plan.is_done(one)]
      if mine:
        questions.append(question(sweep, mine, entry))
  return questions


def _recorded(workdir):
  """The entries of sweep.json; none, with a note, where the file cannot be read."""
  try:
    return origin.recorded(workdir)
  except errors.Damaged as error:
    print(f'no verdicts: {error}', file=sys.stderr)
    return []


def question(sweep, mine, entry):
  """Returns the report.Question of the runs `mine` of a sweep; `entry` is its line of sweep.json."""
  page, file = (sweep.file.with_name(name) for name in ('README.md', 'report.py'))
  results, verdicts, figures = collect.results(mine), [], {}
  if file.is_file():
    verdicts, figures = conclude.concluded(experiment.module_of(file), results)
  words = ['sweep', entry['sweep'], '--workdir', str(sweep.workdir),
           *(f'--config.{text}' for text in plan.merge(entry['overrides']))]
  text = page.read_text(encoding='utf-8') if page.is_file() else f'# {sweep.question}'
  return report.Question(
      name=sweep.question, text=text, command=plugins.command(*words), verdicts=verdicts, figures=figures,
      note=f'{len(mine)} of its {len(sweep.runs)} runs are done and on this page.')
