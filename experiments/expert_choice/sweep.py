"""Dense, top-1, top-2 and expert choice in the encoder of a T5 model, at equal FLOPs."""

from stmoe.experiments import sizes

METHODS = ('dense', 'switch', 'gshard', 'expert_choice')


def runs(size='small'):
  """Yields a run of every method and seed; in a causal model expert choice would see ahead."""
  usual = {'smoke': sizes.SMOKE, 'small': sizes.WHOLE | {'train.steps': 2400, 'eval.batches': 50}}
  small = '' if size == 'large' else ',smoke'
  for method in METHODS:
    for seed in sizes.seeds(size):
      fields = usual.get(size, sizes.WHOLE) | {'seed': seed}
      yield method, f'lm/stdlib:method={method},backbone=t5{small}', fields
