"""Convolution networks of handwritten digits under attack: dense, mixtures in plain training, and AdvMoE."""

from stmoe.experiments import sizes

# Name -> argument. Dense networks have the width of one expert, `dense_wide` that of both. `plain_twice` has
# as many steps in all as a method in turns, whose experts train in every second of them.
METHODS = {
    'standard': 'method=standard',
    'dense': 'method=dense',
    'dense_wide': 'method=dense,ratio=1.0',
    'plain': 'method=plain',
    'bilevel': 'method=bilevel',
    'advmoe': 'method=advmoe',
    'plain_twice': 'method=plain',
}
MIXTURES = 'plain', 'bilevel', 'advmoe', 'plain_twice'
FIELD, OTHER = 'loss.attack', 'model'    # a mixture is attacked twice: with its router, and without
EXPERIMENTS = {'smoke': 'adv_moe/digits', 'small': 'adv_moe/digits', 'large': 'adv_moe/cifar10'}
TWICE = {'smoke': 40, 'small': 600, 'large': 78_125}


def runs(size='small'):
  """Yields a run of every method and seed; but for `plain_twice`, all experts train equally many steps."""
  sizes.seeds(size)
  models = {name: (f'{EXPERIMENTS[size]}:{argument}', {}) for name, argument in METHODS.items()}
  models['plain_twice'] = models['plain'][0], {'train.steps': TWICE[size]}
  for name, experiment, fields in sizes.fitted(size, models, {}, {}):
    again = {FIELD: [OTHER]} if name in MIXTURES else {}
    yield dict(name=name, experiment=experiment, overrides=fields, evaluations=again)
