"""Hash layers, random and balanced, against Switch, and all against dense, with 8 and 32 experts."""

from stmoe.experiments import sizes

EXPERTS = (8, 32)
GROUP = {'blocks.m.group_size': 2048}    # as in switch_experts
TABLE = '{run}/balanced.npz'
BALANCED = {'blocks.m.router.kind': 'balanced', 'blocks.m.router.table': TABLE}


def runs(size='small'):
  """Yields a run of every model and seed; runs with a balanced table count the ids of their text first."""
  models = {'dense': 'method=dense'}
  for e in EXPERTS:
    models |= {f'hash_{e}': f'method=hash,experts={e}', f'switch_{e}': (f'method=switch,experts={e}', GROUP),
               f'balanced_{e}': (f'method=hash,experts={e}', BALANCED)}
  for name, experiment, fields in sizes.runs(size, models):
    tables = [['tables', experiment, '--kind', 'balanced', '-o', TABLE]] if name.startswith('bal') else []
    yield dict(name=name, experiment=experiment, overrides=fields, prepare=tables)
