"""The sizes that sweeps of language models come in, as their argument.

smoke   a few steps: whether everything fits together
small   the default: `lm/quickstart`, about a minute a run on two cores
large   `lm/stdlib`, 33 million tokens and 1.7 PFLOP a run: for a GPU, in bfloat16, by its kernels
"""

import functools

from stmoe import errors
from stmoe import experiment

SEEDS = {'smoke': (0, 1), 'small': (0, 1, 2), 'large': (0, 1, 2)}
EXPERIMENTS = {'smoke': 'lm/quickstart:smoke,{}', 'small': 'lm/quickstart:{}', 'large': 'lm/stdlib:{}'}
# Overrides of any experiment: a run of four steps, evaluated on one batch.
SMOKE = {'train.steps': 4, 'train.log_every': 2, 'schedule.warmup_steps': 1, 'eval.every': 100,
         'eval.batches': 1, 'checkpoint.every': 100}
# Overrides of the other sizes: evaluated and saved at the end alone.
WHOLE = {'eval.every': 1000000, 'checkpoint.every': 1000000, 'checkpoint.keep': 1}


def seeds(size):
  """Returns the seeds of a size; raises UserError where no such size exists."""
  if size not in SEEDS:
    raise errors.UserError(f'no size is called {size!r}{errors.nearest(size, SEEDS)} '
                           f'(there are: {", ".join(SEEDS)})')
  return SEEDS[size]


def model(size, argument):
  """Returns (experiment, overrides) of the language model `argument`, such as 'method=switch', in a size."""
  seeds(size)
  name = EXPERIMENTS[size].format(argument)
  return name, dict(SMOKE) if size == 'smoke' else WHOLE | (on_gpu(name) if size == 'large' else {})


@functools.cache
def on_gpu(name):
  """Returns the overrides with which experiment `name` runs well on a GPU: its dtype, and its executors."""
  fields = experiment.flatten(experiment.load(name)[0])
  return {'model.dtype': 'bfloat16', **{field: 'pallas' for field, value in fields.items()
                                        if field.endswith('.executor') and value == 'blocks'}}


def runs(size, models):
  """Yields a run of every model and seed.

  Args:
    models: dict name -> argument of `model`, or (argument, overrides).
  """
  for name, entry in models.items():
    argument, fields = (entry, {}) if isinstance(entry, str) else entry
    experiment, usual = model(size, argument)
    for seed in seeds(size):
      yield name, experiment, fields | usual | {'seed': seed}


def fitted(size, models, small, large, own_seeds=None):
  """Yields a run of every model and seed of experiments that have the argument `smoke`.

  Args:
    models:       dict name -> (experiment, overrides).
    small, large: overrides of all models in these sizes; in the size `smoke` the experiment says all.
    own_seeds:    of the size; None = the usual ones.
  """
  usual = seeds(size)
  of_size = {'smoke': {}, 'small': WHOLE | small, 'large': WHOLE | large}[size]
  for name, (start, fields) in models.items():
    separator = ',' if ':' in start else ':'
    argument = f'{separator}smoke' if size == 'smoke' else ''
    for seed in own_seeds or usual:
      yield name, start + argument, fields | of_size | {'seed': seed}
