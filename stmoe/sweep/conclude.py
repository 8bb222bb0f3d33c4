"""What a sweep says about its claims: the verdicts and figures of the report.py beside it.

report(results) -> list of verdict.Verdict        figures(results) -> dict file name -> Figure, if it has one
"""

import dataclasses
import json
import math


def write(folder, module, found, total):
  """Writes verdict.json and the figures of `module` into `folder`; returns lines that say so.

  Args:
    folder: pathlib.Path, there already.
    module: of report.py.
    found:  list of collect.Result.
    total:  number of runs of the sweep; a verdict on fewer says so.
  """
  verdicts = module.report(found)
  lines = [str(one) for one in verdicts]
  content = dict(runs=len(found), of=total, verdicts=[_plain(dataclasses.asdict(one)) for one in verdicts])
  (folder / 'verdict.json').write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
  if hasattr(module, 'figures'):
    from stmoe.analysis import canvas
    for stem, figure in module.figures(found).items():
      lines += map(str, canvas.save(figure, folder, stem))
  return lines


def _plain(fields):
  """`fields` with null for what is not finite."""
  wrong = lambda value: isinstance(value, float) and not math.isfinite(value)
  return {key: None if wrong(value) else value for key, value in fields.items()}
