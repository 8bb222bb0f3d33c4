"""The sizes that sweeps of language models come in, as their argument.

smoke   seconds a run: whether everything fits together
small   the default: `lm/quickstart`, about a minute a run on two cores
large   `lm/stdlib`, 1.7 PFLOP a run: for a GPU (with --config.blocks.m.executor=gather)
"""

from stmoe import errors

SEEDS = {'smoke': (0, 1), 'small': (0, 1, 2), 'large': (0, 1, 2)}
EXPERIMENTS = {'smoke': 'lm/quickstart:smoke,{}', 'small': 'lm/quickstart:{}', 'large': 'lm/stdlib:{}'}
SMOKE = {'train.steps': 4, 'train.batch_size': 8, 'train.log_every': 2, 'schedule.warmup_steps': 1,
         'eval.every': 100, 'eval.batches': 1, 'eval.batch_size': 8, 'checkpoint.every': 100}


def seeds(size):
  """Returns the seeds of a size."""
  return SEEDS[_known(size)]


def model(size, argument):
  """Returns (experiment, overrides) of the language model `argument`, for example 'method=switch', in a size.

  Its last evaluation is the only one.
  """
  fields = SMOKE if _known(size) == 'smoke' else {'eval.every': 1000000, 'checkpoint.keep': 1}
  return EXPERIMENTS[size].format(argument), dict(fields)


def _known(size):
  if size not in SEEDS:
    raise errors.UserError(f'no size is called {size!r}{errors.nearest(size, SEEDS)} '
                           f'(there are: {", ".join(SEEDS)})')
  return size
