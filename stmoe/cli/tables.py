"""Makes the hash table of an experiment's vocabulary, for routers of Hash layers.

stmoe tables hash/kinds:kind=balanced --kind balanced -o balanced.npz
stmoe tables hash/kinds:kind=dispersed --kind dispersed --embeddings runs/dense -o dispersed.npz
stmoe train hash/kinds:kind=balanced --config.blocks.m.router.table=balanced.npz

The command counts the ids of the training split of NAME's data. The kinds clustered and dispersed find
clusters of the token embeddings of a trained run (dense, in the paper) with the same vocabulary.
"""

import pathlib
import sys

from stmoe import errors
from stmoe import files
from stmoe import ranges
from stmoe.derive import downloaded
from stmoe.runs import directory as rundir


def add_arguments(parser):
  parser.add_argument('name', metavar='NAME', help='an experiment, NAME[:argument], or a downloaded folder')
  parser.add_argument('--kind', required=True, help='balanced, random, clustered or dispersed')
  parser.add_argument('--embeddings', metavar='RUN', type=pathlib.Path,
                      help='run directory or downloaded folder whose embeddings are clustered')
  parser.add_argument('--experts', type=ranges.Count, metavar='K',
                      help='buckets; default: the experts of NAME')
  parser.add_argument('--seed', type=ranges.Whole(0, 2**32 - 1), default=42,
                      help='of random tables and of k-means (default: 42)')
  parser.add_argument('-o', '--out', required=True, metavar='FILE.npz', type=pathlib.Path)
  parser.set_defaults(overrides=())


def run(args):
  from stmoe.core import tables
  from stmoe.data.text import hash_tables
  cfg, _ = rundir.named(str(downloaded.resolved(args.name)), args.overrides)
  if args.kind not in hash_tables.KINDS:
    raise errors.UserError(f'--kind {args.kind} does not exist{errors.nearest(args.kind, hash_tables.KINDS)} '
                           f'(there are: {", ".join(hash_tables.KINDS)})')
  needed = args.kind in hash_tables.EMBEDDED
  if needed != bool(args.embeddings):
    raise errors.UserError(f'--kind {args.kind} {"needs" if needed else "takes no"} --embeddings RUN')
  files.check_place('--out', args.out)
  experts = args.experts or hash_tables.num_experts(cfg)
  counts, vocabulary = hash_tables.count(cfg)
  embeddings = _embeddings(args.embeddings, vocabulary, len(counts)) if needed else None
  table = hash_tables.make(args.kind, counts, experts, args.seed, embeddings)
  tables.TableFile(table, experts, args.kind, vocabulary.digest).write(args.out)
  print(f'{args.out}: {args.kind}')
  print('\n'.join(hash_tables.describe(table, counts, experts)))


def _embeddings(path, vocabulary, vocab_size):
  """The token embeddings f32[V,D] of the newest checkpoint of a run with the same vocabulary."""
  import numpy as np

  from stmoe.data import record
  from stmoe.train import opened
  from stmoe.train import state as states
  path = downloaded.resolved(path)
  cfg = record.read(path).located(rundir.opened(path))
  if cfg.model.vocab_size != vocab_size:
    raise errors.UserError(f'--embeddings {path}: its model has {cfg.model.vocab_size} ids, this one has '
                           f'{vocab_size}')
  with states.on_mesh(dict(data=-1, expert=1, model=1)) as mesh:
    plan = states.blueprint(cfg, mesh)
    _, state, *_ = opened.restore(plan, path, vocabulary, lambda text: print(text, file=sys.stderr))
  return np.asarray(state['params']['embed']['table'])
