"""Shell commands on standard output, a line for each run: for whatever else starts processes."""

import shlex

from stmoe.sweep import work


def launch(runs, board):
  """Returns 0 after printing a line for each run; `&&` joins the commands of one."""
  for run in runs:
    print(' && '.join(shlex.join(['stmoe', *words]) for words in work.commands(run)))
  return 0
