"""New domains of rotated digits: a student that adapts to them (Meta-DMoE), and one that does not (ERM)."""

from stmoe.configs.meta_dmoe import digits
from stmoe.experiments import sizes

METHODS = ('erm', 'meta_dmoe', 'unmasked', 'first_order')
ANGLES = digits.CHANGES['rotation'][1]   # of the new domains, in the order of their numbers
LARGE = {'model.d_ff': 512, 'train.batch_size': 32}                  # small is the file as it is


def runs(size='small'):
  """Yields a run of every method and seed; a seed also orders the source domains, which makes the groups."""
  models = {method: (f'meta_dmoe/digits:method={method}', {}) for method in METHODS}
  last = {'first_order': models.pop('first_order')}
  for seed in sizes.seeds(size):
    yield from sizes.fitted(size, models, {}, LARGE, (seed,))
  yield from sizes.fitted(size, last, {}, LARGE)
