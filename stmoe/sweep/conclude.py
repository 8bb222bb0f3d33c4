"""What a sweep says about its claims: the verdicts and figures of the report.py beside it.

report(results) -> list of verdict.Verdict        figures(results) -> dict file name -> Figure, if it has one
"""

import dataclasses

from stmoe import errors
from stmoe import files
from stmoe.analysis import verdict


def write(folder, module, found, total):
  """Writes verdict.json and the figures of `module` into `folder`; returns lines that say so.

  Args:
    folder: pathlib.Path, there already.
    module: of report.py.
    found:  list of collect.Result.
    total:  number of runs of the sweep; a verdict on fewer says so.
  """
  verdicts, figures = concluded(module, found)
  lines = [str(answer) for answer in verdicts]
  content = dict(runs=len(found), of=total, verdicts=list(map(dataclasses.asdict, verdicts)))
  files.write_json(folder / 'verdict.json', files.plain(content))
  if figures:
    from stmoe.analysis import canvas
    for stem, figure in figures.items():
      lines += map(str, canvas.save(figure, folder, stem))
  return lines


def concluded(module, found):
  """Returns (verdicts, figures) of `module`, of a report.py, on `found`; raises UserError where it fails."""
  with errors.of_file(module.__file__):
    verdicts = list(module.report(found))
    figures = dict(module.figures(found)) if hasattr(module, 'figures') else {}
  for answer in verdicts:
    if not isinstance(answer, verdict.Verdict):
      raise errors.UserError(f'{module.__file__}: report returned {answer!r}; wanted: verdict.Verdict')
  return verdicts, figures
