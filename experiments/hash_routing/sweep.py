"""Hash layers against Switch, and both against dense, with 8 and 32 experts."""

from stmoe.experiments import sizes

EXPERTS = (8, 32)
GROUP = {'blocks.m.group_size': 2048}    # as in switch_experts


def runs(size='small'):
  """Yields a run of every model and seed."""
  models = {'dense': 'method=dense'}
  for e in EXPERTS:
    models |= {f'hash_{e}': f'method=hash,experts={e}', f'switch_{e}': (f'method=switch,experts={e}', GROUP)}
  return sizes.runs(size, models)
