"""BASE layers with and without their shuffle, with another assignment, and dense."""

from stmoe.experiments import sizes

MODELS = {'base': 'method=base', 'unshuffled': 'shuffle=False', 'greedy': 'assignment=greedy_balanced',
          'dense': 'method=dense'}
# The small size has a quarter of the file's width and half of its batch: two groups of four rows to shuffle.
SMALL = {'model.d_model': 128, 'model.num_heads': 2, 'blocks.d.d_ff': 512, 'train.batch_size': 8,
         'train.steps': 300, 'schedule.warmup_steps': 30, 'schedule.peak': 2e-3, 'eval.batch_size': 8,
         'eval.batches': 50}
WIDTH = {'base': 'blocks.m.inner.experts.d_ff', 'greedy': 'blocks.m.inner.experts.d_ff',
         'unshuffled': 'blocks.m.experts.d_ff', 'dense': 'blocks.m.d_ff'}


def runs(size='small'):
  """Yields a run of every model and seed."""
  for name, argument in MODELS.items():
    fields = {} if size == 'large' else SMALL | {WIDTH[name]: 512}
    for seed in sizes.seeds(size):
      usual = sizes.SMOKE if size == 'smoke' else sizes.WHOLE
      yield name, f'base/small:{argument}', fields | usual | {'seed': seed}
