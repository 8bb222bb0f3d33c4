"""Tokenises a task once into the cache that training reads; training does it by itself at first use.

stmoe cache stdlib
stmoe cache text --files a.txt b.txt.gz --train-vocab 4096
stmoe cache c4 --vocab t5.model --extra-ids 100
stmoe cache boolq --files train.jsonl val.jsonl
stmoe cache text --files 'corpus/*.jsonl.zst' --vocab tokenizer.json --shards --processes 8

The last is for a corpus of any size (data.cache=shards). It may be killed at any moment: the same command
goes on. Training may start as soon as it has begun.
"""

from stmoe import errors
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
  parser.add_argument('--field', default='', help='of a row that holds its text (default: text)')
  parser.add_argument('--documents', default='', help='what a document of a file of text is: file (default), '
                      'line, paragraph, or the text that stands between two')
  parser.add_argument('--shards', action='store_true', help='in shards, each whole or not there')
  parser.add_argument('--shard-mb', type=ranges.Positive, default=64.0, metavar='MB',
                      help='millions of bytes of text in a shard (default: 64)')
  parser.add_argument('--processes', type=ranges.Count, metavar='N',
                      help='that make shards; default: one for each core, at most 8')
  parser.add_argument('--cache-dir', default='', metavar='DIR',
                      help='default $STMOE_CACHE_DIR or ~/.cache/stmoe')


def run(args):
  from stmoe.data.text import cache
  from stmoe.data.text import tasks

  how = dict(field=args.field, documents=args.documents)
  spec = args.vocab if args.train_vocab is None else f'train:{args.train_vocab}'
  words = lambda task: cache.vocabulary_of(spec, [task], args.extra_ids, args.cache_dir)
  if args.shards:
    task, vocabulary, cached = _in_shards(args, words, how)
  else:
    task = tasks.get(args.task, args.files, **how)
    vocabulary = words(task)
    cached = cache.of(task, vocabulary, args.cache_dir)
  print(cached.path)
  print(f'vocabulary {spec}: {vocabulary.vocab_size} ids{_where(vocabulary)}')
  for split, size in cached.facts['splits'].items():
    print(f'{split}: {size["documents"]:,} documents, {size["bytes"]:,} bytes, {size["tokens"]:,} tokens '
          f'({size["bytes"] / size["tokens"]:.3f} bytes per token), sha256 {size["sha256"][:8]}')
  for name, value in task.facts.items():
    print(f'{name}: {value}')


def _in_shards(args, words, how):
  """(task, its vocabulary by function `words`, the `store.Kept` of all its shards)."""
  from stmoe.data import store
  from stmoe.data.large import corpora
  from stmoe.data.large import maker
  from stmoe.data.large import sharded
  from stmoe.data.large import shard_process
  try:
    task = corpora.of(args.task, args.files, **how)
    vocabulary = words(task)
    found = sharded.of(task, vocabulary, round(args.shard_mb * 1e6), args.cache_dir)
    facts = maker.make(found, args.processes or maker.usual(), shard_process.spec(found, args.files, how))
  except corpora.Unfit as error:
    raise errors.UserError(f'--shards: {error.reason}; nearest: without --shards') from error
  print(f'{facts["shards"]:,} shards')
  return task, vocabulary, store.Kept(found.path, facts)


def _where(vocabulary):
  return f', {vocabulary.path}' if hasattr(vocabulary, 'path') else ''
