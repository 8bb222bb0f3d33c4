"""From wide experts to narrow experts, of which one is shared, at equal parameters and FLOPs."""

from stmoe.experiments import sizes

# m experts of 1/m of the dense width are active; one of the m is shared.
GRAINS = (2, 4, 8)
EXPERTS, WIDTH = 8, {'smoke': 512, 'small': 512, 'large': 1024}


def runs(size='small'):
  """Yields a run of every model and seed."""
  sizes.seeds(size)
  models = {'dense': 'method=dense', 'top2': 'method=gshard,experts=16'}
  for m in GRAINS:
    width = WIDTH[size] // m
    models[name(m)] = 'method=deepseek_moe', {
        'blocks.m.inner.router.num_experts': EXPERTS * m - 1, 'blocks.m.inner.router.k': m - 1,
        'blocks.m.inner.experts.d_ff': width, 'blocks.m.d_ff': width}
  return sizes.runs(size, models)


def name(m):
  """Returns the name of the runs with experts of 1/m of the dense width."""
  return f'shared_{m}'
