"""Shell commands on standard output, a line for each run: for whatever else starts processes."""

import shlex

from stmoe.sweep import work


def launch(runs, board):
  """Returns 0 after printing a line for each run; `&&` joins the commands of a run."""
  for run in runs:
    lines = [['mkdir', '-p', str(run.workdir)]] if run.prepare else []
    lines += [['stmoe', *words] for words in work.commands(run)]
    print(' && '.join(map(shlex.join, lines)))
  return 0
