"""Question answerers: dense, a mixture as head, Switch layers; augmented examples of far domains or not."""

from stmoe.experiments import sizes

HEAD, SWITCH = 'robust_qa/moe_head', 'robust_qa/switch_ffn'
FAR = 'bases', 'value'                   # the domains with few examples
EDA = {'data.eda.files': ','.join(FAR)}
COPIES = {'data.eda.share': 0.001}       # one word of each copy changes: shown as often as with EDA
# Name -> (experiment, argument, overrides).
MODELS = {
    'plain': (HEAD, 'experts=0', {}),
    'mixture': (HEAD, '', {}),
    'switch': (SWITCH, '', {}),
    'plain_eda': (HEAD, 'experts=0', EDA),
    'mixture_eda': (HEAD, '', EDA),
    'plain_copies': (HEAD, 'experts=0', EDA | COPIES),
}
LENGTH = 128                             # tokens of a question with its context
# Four domains of the standard library, of which training shows two by 127 questions each.
DATA = {'data.task': 'stdlib_domains', 'data.vocab': 'train:2000', 'data.inputs_length': LENGTH,
        'data.question_length': 16, 'data.stride': 32, 'data.answer_length': 32, 'model.vocab_size': 2048}
TINY = {'model.dtype': 'float32', 'schedule.value': 2e-3, 'train.log_every': 50, 'train.batch_size': 16,
        'eval.examples': 200, 'eval.batches': 8, 'eval.batch_size': 64}
STEPS = {'smoke': 4, 'small': 300, 'large': 20_000}


def runs(size='small'):
  """Yields a run of every model and seed."""
  for seed in sizes.seeds(size):
    for name in MODELS:
      yield name, *run(size, name, seed)


def run(size, name, seed):
  """Returns (experiment, overrides) of a model."""
  start, argument, fields = MODELS[name]
  words = [word for word in (argument, '' if size == 'large' else 'smoke') if word]
  small = TINY | {'model.encoder': f"(('{'s' if start == SWITCH else 'd'}', 2),)"}
  usual = {'smoke': {}, 'small': sizes.WHOLE | small, 'large': sizes.WHOLE}[size]
  groups = {} if start != SWITCH or size == 'large' else {'blocks.s.group_size': 2 * LENGTH}
  return start + (':' + ','.join(words) if words else ''), DATA | usual | groups | fields | {
      'train.steps': STEPS[size], 'seed': seed}
