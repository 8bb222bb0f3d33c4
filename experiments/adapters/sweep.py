"""One dense model that was trained on text, then tuned on four tasks: all of it, or adapters beside it."""

from stmoe.experiments import sizes

# Steps of the model that is tuned, and of every tuning.
STEPS = {'smoke': (4, 2), 'small': (400, 100), 'large': (4000, 2000)}
# Half of the layers and rows of the quickstart.
DENSE = {'smoke': {}, 'large': {},
         'small': {'model.layers': "(('dm', 1),)", 'train.batch_size': 8, 'eval.batches': 16}}
# Tokens of a question and of its answer. A token is about three bytes, of `large` one.
LENGTHS = {'smoke': (44, 20), 'small': (44, 20), 'large': (256, 96)}
QUESTIONS = {'smoke': 4, 'small': 100, 'large': 0}                   # judged of a task; 0 = all
ROWS = {'smoke': 16, 'small': 128, 'large': 512}                     # whose loss is told, of each task
TASKS = ('stdlib_name', 'stdlib_parameters', 'stdlib_docstring', 'stdlib_keyword')
PER_TASK = {'data.mixture': [f"(('{task}', 1.0),)" for task in TASKS]}
# Of adapters: as many parameters train as fit within 2 % of each other, alpha is twice the rank, as in both
# papers, and so are experts, k, dropout and the matrices that have adapters.
RANKS = {'smoke': (10, 2, 3), 'small': (20, 4, 6), 'large': (40, 8, 12)}
RATES = {'full': 1e-3, 'lora': 3e-3, 'mixlora': 3e-3, 'dynmole': 3e-3}


def adapters(size):
  """Returns dict method -> text of finetune.adapter, '' = all parameters train."""
  lora, mixlora, dynmole = RANKS[size]
  low = lambda rank: f'rank={rank},alpha={2.0 * rank},dropout_rate=0.05'
  return dict(full='', lora=f'lora:targets=attention+layer,{low(lora)}',
              mixlora=f'mixlora:num_experts=8,k=2,{low(mixlora)}',
              dynmole=f'dynmole:num_experts=6,keep=2,{low(dynmole)}')


def runs(size='small'):
  """Yields, of every seed, two models to start from, what stays as it is, and all that is tuned."""
  for seed in sizes.seeds(size):
    trained = start(size, 'trained', STEPS[size][0], seed)
    drawn = start(size, 'drawn', 1, seed)
    yield trained
    yield drawn
    yield tuned(size, 'untuned', trained, seed, '', 1, 0.0)
    yield tuned(size, 'full_from_drawn', drawn, seed, '', STEPS[size][1], RATES['full'])
    for method, adapter in adapters(size).items():
      yield tuned(size, method, trained, seed, adapter, STEPS[size][1], RATES[method])


def start(size, name, steps, seed):
  """Returns (name, experiment, overrides) of a dense language model after `steps` of text."""
  experiment, usual = sizes.model(size, 'method=dense')
  return name, experiment, usual | DENSE[size] | {'train.steps': steps, 'seed': seed}


def tuned(size, name, start, seed, adapter, steps, rate):
  """Returns the run that goes on from the run `start` for `steps` of questions, at a constant `rate`."""
  usual = {field: value for field, value in (sizes.SMOKE if size == 'smoke' else sizes.WHOLE).items()
           if field.startswith(('eval.', 'checkpoint.'))}
  inputs, targets = LENGTHS[size]
  return dict(
      name=name, experiment='finetune/stdlib', evaluations=PER_TASK,
      start=dict(run=start, command='finetune'),
      overrides=usual | {
          'data.inputs_length': inputs, 'data.targets_length': targets, 'train.steps': steps,
          'train.batch_size': 8, 'schedule.value': rate, 'finetune.adapter': adapter,
          'eval.batch_size': ROWS[size], 'eval.batches': 1, 'eval.examples': QUESTIONS[size],
          'checkpoint.best': '', 'seed': seed})
