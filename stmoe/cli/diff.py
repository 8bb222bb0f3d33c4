"""Shows in which fields two experiments or runs differ.

stmoe diff lm/stdlib lm/stdlib:smoke
stmoe diff runs/try lm/stdlib
stmoe diff DOWNLOADED OTHER                    by their headers; no tensor is read
"""

from stmoe import experiment
from stmoe.derive import downloaded


def add_arguments(parser):
  parser.add_argument('left',
                      help='an experiment, NAME[:argument], the path of a .py file, a run directory, or a '
                      'downloaded folder')
  parser.add_argument('right', help='another one')


def run(args):
  left, left_name = downloaded.named(args.left)
  right, right_name = downloaded.named(args.right)
  rows = [('', left_name, right_name)]
  rows += [(key, repr(a), repr(b)) for key, (a, b) in experiment.diff(left, right).items()]
  if len(rows) == 1:
    print(f'{left_name} and {right_name} are equal')
    return
  first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
  for key, a, b in rows:
    print(f'{key:{first}}  {a:{second}}  {b}')
