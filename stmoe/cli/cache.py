"""Tokenises a task once into the cache that training reads; training does it by itself at first use.

stmoe cache stdlib
stmoe cache text --files a.txt b.txt.gz --train-vocab 4096
stmoe cache c4 --vocab t5.model --extra-ids 100
stmoe cache boolq --files train.jsonl val.jsonl
"""

from stmoe import ranges


def add_arguments(parser):
  parser.add_argument('task', help='stdlib, text, c4, boolq, xsum, ...')
  parser.add_argument('--files', nargs='+', default=(), metavar='FILE',
                      help='of tasks text and pairs, or the jsonl of any other')
  vocabulary = parser.add_mutually_exclusive_group()
  vocabulary.add_argument('--vocab', default='bytes',
                          help='bytes (default), a tokenizer.json or a SentencePiece model')
  vocabulary.add_argument('--train-vocab', type=ranges.Count, metavar='N',
                          help='train a SentencePiece model of N pieces on the train split (vocab train:N)')
  parser.add_argument('--extra-ids', type=ranges.Natural, default=0, metavar='N',
                      help='sentinels above the vocabulary')
  parser.add_argument('--cache-dir', default='', metavar='DIR',
                      help='default $STMOE_CACHE_DIR or ~/.cache/stmoe')


def run(args):
  from stmoe.data.text import cache
  from stmoe.data.text import tasks

  task = tasks.get(args.task, args.files)
  spec = args.vocab if args.train_vocab is None else f'train:{args.train_vocab}'
  vocabulary = cache.vocabulary_of(spec, [task], args.extra_ids, args.cache_dir)
  cached = cache.of(task, vocabulary, args.cache_dir)
  print(cached.path)
  print(f'vocabulary {spec}: {vocabulary.vocab_size} ids{_where(vocabulary)}')
  for split, size in cached.facts['splits'].items():
    print(f'{split}: {size["documents"]:,} documents, {size["bytes"]:,} bytes, {size["tokens"]:,} tokens '
          f'({size["bytes"] / size["tokens"]:.3f} bytes per token), sha256 {size["sha256"][:8]}')
  for name, value in task.facts.items():
    print(f'{name}: {value}')


def _where(vocabulary):
  return f', {vocabulary.path}' if hasattr(vocabulary, 'path') else ''
