"""Switch in four widths with 1 (dense) to 32 experts, all with the same training tokens."""

from stmoe.experiments import sizes

WIDTHS = {'smoke': (64, 128), 'small': (64, 128, 192, 256), 'large': (256, 384, 512, 768)}
EXPERTS = (1, 2, 8, 32)


def runs(size='small'):
  """Yields a run per width, number of experts and seed."""
  sizes.seeds(size)
  models = {}
  for width in WIDTHS[size]:
    for experts in EXPERTS:
      fields = {'model.d_model': width, 'model.num_heads': width // 64, 'blocks.d.d_ff': 4 * width}
      argument = 'method=dense'
      if experts == 1:
        fields['blocks.m.d_ff'] = 4 * width
      else:
        argument = f'method=switch,experts={experts}'
        fields |= {'blocks.m.experts.d_ff': 4 * width, 'blocks.m.group_size': 2048}
      models[name(width, experts)] = argument, fields
  return sizes.runs(size, models)


def name(width, experts):
  """Returns the name of the runs of this width with so many experts."""
  return f'd{width}_e{experts:02d}'
