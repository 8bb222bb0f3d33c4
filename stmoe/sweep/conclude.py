"""What a sweep says about its claims: the verdicts and figures of the report.py beside it.

report(results) -> list of verdict.Verdict        figures(results) -> dict file name -> Figure, if it has one
"""

import dataclasses

from stmoe import errors
from stmoe import files


def write(folder, module, found, total):
  """Writes verdict.json and the figures of `module` into `folder`; returns lines that say so.

  Args:
    folder: pathlib.Path, there already.
    module: of report.py.
    found:  list of collect.Result.
    total:  number of runs of the sweep; a verdict on fewer says so.
  """
  with errors.of_file(module.__file__):
    verdicts = module.report(found)
  lines = [str(answer) for answer in verdicts]
  content = dict(runs=len(found), of=total, verdicts=list(map(dataclasses.asdict, verdicts)))
  files.write_json(folder / 'verdict.json', files.plain(content))
  if hasattr(module, 'figures'):
    from stmoe.analysis import canvas
    for stem, figure in module.figures(found).items():
      lines += map(str, canvas.save(figure, folder, stem))
  return lines
