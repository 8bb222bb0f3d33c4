"""Prints one experiment's resolved configuration, after its argument and the overrides.

stmoe show lm/stdlib:smoke --config.train.steps=100
stmoe show lm/stdlib --json
"""

from stmoe import experiment


def add_arguments(parser):
  parser.add_argument('name', help='an experiment, NAME[:argument], or the path of a .py file')
  parser.add_argument('--json', action='store_true', help='print what a run stores as config.json')
  parser.set_defaults(overrides=())


def run(args):
  config, name = experiment.load(args.name, args.overrides)
  if args.json:
    print(experiment.to_json(config))
    return
  print(f'{name}  (run id {experiment.run_id(config)[:8]})')
  for line in _lines(config.to_dict(), ''):
    print(line)


def _lines(fields, indent):
  """One line per field, then the groups with their fields indented below their names."""
  width = max(map(len, fields), default=0)
  for key, value in sorted(fields.items(), key=lambda field: isinstance(field[1], dict)):
    if isinstance(value, dict) and value:
      yield f'{indent}{key}'
      yield from _lines(value, indent + '  ')
    else:
      yield f'{indent}{key:{width}}  {value!r}'
