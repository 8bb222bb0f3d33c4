"""New domains of rotated digits: a student that adapts to them (Meta-DMoE), and one that does not (ERM)."""

from stmoe.experiments import sizes

METHODS = ('erm', 'meta_dmoe', 'unmasked', 'first_order')
LARGE = {'model.d_ff': 512, 'train.batch_size': 32}                  # small is the file as it is


def runs(size='small'):
  """Returns a run of every method and seed; a seed also orders the source domains, which makes the groups."""
  models = {method: (f'meta_dmoe/digits:method={method}', {}) for method in METHODS}
  return sizes.fitted(size, models, {}, LARGE)
