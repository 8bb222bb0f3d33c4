"""What simple models of bytes reach on the validation text of an experiment, to read its losses against.

  python -m stmoe.experiments.baselines lm/stdlib
  python -m stmoe.experiments.baselines lm/text --config.data.files=FILE

Counts the whole training text and predicts the whole evaluation split, as evaluation with eval.batches=0
does. Both texts are held in memory.
"""

import sys

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.analysis import ngram


def rows(cfg):
  """Yields (text, bits per byte) of the baselines of a configuration."""
  if 'vocab' not in cfg.data or cfg.data.get('mixture'):
    raise errors.UserError('baselines are of one task of text; this experiment has images or a mixture')
  task, = lookup.source(cfg.data).tasks()
  train, text = (''.join(task.documents(split)).encode() for split in ('train', cfg.data.eval_split))
  yield 'uniform bytes', 8.0
  by_order = ngram.bits(train, text)
  yield from ((f'byte {n}-gram', value) for n, value in enumerate(by_order, 1))
  yield f'best byte n-gram ({1 + by_order.index(min(by_order))}-gram)', min(by_order)
  yield 'xz given the training text', ngram.xz(train, text)


def main(words):
  """Prints the baselines of the experiment in `words`, of a command line; returns the exit code."""
  try:
    if not words or words[0].startswith('-'):
      raise errors.UserError('give an experiment: python -m stmoe.experiments.baselines NAME')
    for text, value in rows(experiment.load(words[0], words[1:])[0]):
      print(f'{text:28} {value:.3f}', flush=True)
  except errors.UserError as error:
    print(f'stmoe: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
