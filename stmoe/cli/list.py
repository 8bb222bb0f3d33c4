"""Shows which experiments exist, with the first line of their docstrings."""

from stmoe import errors
from stmoe import experiment


def add_arguments(parser):
  parser.add_argument('filter', nargs='*', metavar='WORD', help='keep the names that contain every WORD')


def run(args):
  matching = {name: line for name, line in experiment.available().items()
           if all(word in name for word in args.filter)}
  if not matching:
    words = ' '.join(args.filter)
    raise errors.UserError(f'no experiment has {words!r} in its name'
                           f'{errors.nearest(words, experiment.available())}')
  width = max(map(len, matching))
  for name, line in matching.items():
    print(f'{name:{width}}  {line}'.rstrip())
