"""A dense model, and Switch of equal active FLOPs with 2 to 32 experts."""

from stmoe.experiments import sizes

EXPERTS = (2, 4, 8, 16, 32)
# All tokens of a batch are one group: with many experts, small groups would drop tokens for their size alone.
GROUP = {'blocks.m.group_size': 2048}


def runs(size='small'):
  """Yields a run of every model and seed."""
  models = {'dense': 'method=dense'} | {name(e): (f'method=switch,experts={e}', GROUP) for e in EXPERTS}
  return sizes.runs(size, models)


def name(experts):
  """Returns the name of the runs with `experts` experts."""
  return f'switch_{experts:02d}'
