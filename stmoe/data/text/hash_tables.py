"""Hash tables of an experiment's data (Hash Layers, arXiv:2106.04426): ids counted, tokens clustered."""

import numpy as np

from stmoe import errors
from stmoe import lookup
from stmoe.core import tables
from stmoe.data import bar as progress
from stmoe.data.text import stream as streams

KINDS = ('balanced', 'random', 'clustered', 'dispersed')
EMBEDDED = ('clustered', 'dispersed')  # kinds made from the embeddings of a trained model
AT_ONCE = 1 << 20


def num_experts(cfg):
  """Returns K, the number of experts of all routers of `cfg`; raises UserError if they have several."""
  counts = sorted({router.num_experts for router in _routers(cfg.blocks) if 'num_experts' in router})
  if len(counts) != 1:
    raise errors.UserError(f'--experts is needed: the routers of this experiment have '
                           f'{" and ".join(map(str, counts)) or "no"} experts')
  return counts[0]


def _routers(section):
  for key, value in section.items():
    if hasattr(value, 'items'):
      yield from [value] if key == 'router' else _routers(value)


def count(cfg):
  """Returns (counts i64[V], vocabulary): how often each id of the model occurs in the training split.

  Every document's EOS is counted; sentinels and starts, which an objective adds, are not counted. The tasks
  of a mixture count by their weights.
  """
  source = lookup.source(cfg.data)
  if not hasattr(source, 'open_caches'):
    raise errors.UserError(f'{lookup.titled(cfg.data)} has no ids of a vocabulary; nearest: an experiment of '
                           'texts, lm/text')
  by_task = source.open_caches()
  vocabulary = next(iter(by_task.values())).vocabulary
  if vocabulary.vocab_size > cfg.model.vocab_size:
    raise errors.UserError(f'model.vocab_size={cfg.model.vocab_size}, but data.vocab={cfg.data.vocab!r} has '
                           f'{vocabulary.vocab_size} ids')
  parts = [_count(cache, name, cfg.model.vocab_size) for name, cache in by_task.items()]
  if len(parts) == 1:
    return parts[0], vocabulary
  weights = np.array(source.weights(by_task))
  shares = sum(w * part / part.sum() for w, part in zip(weights / weights.sum(), parts))
  return np.rint(shares * sum(part.sum() for part in parts)).astype(np.int64), vocabulary


def _count(cache, name, vocab_size):
  stream = streams.Stream(cache, 'train')
  counts = np.zeros(vocab_size, np.int64)
  with progress.task(f'counting the ids of {name}', len(stream), 'tokens') as advance:
    for at in range(0, len(stream), AT_ONCE):
      ids = stream.read(at, min(at + AT_ONCE, len(stream)))
      counts += np.bincount(ids, minlength=vocab_size)
      advance(len(ids))
  return counts


def clusters(embeddings, num_clusters, seed):
  """Returns i32[V]: the k-means cluster of each row of embeddings f32[V,D] (scikit-learn, k-means++)."""
  from sklearn import cluster            # takes seconds to import
  if num_clusters > len(embeddings):
    raise errors.UserError(f'{num_clusters} clusters of {len(embeddings)} ids; nearest: {len(embeddings)}')
  with progress.task(f'k-means of {len(embeddings)} embeddings into {num_clusters} clusters', None):
    fitted = cluster.KMeans(num_clusters, n_init='auto', random_state=seed).fit(embeddings)
  return fitted.labels_.astype(np.int32)


def make(kind, counts, experts, seed, embeddings=None):
  """Returns the table i32[V] of `kind`, one of KINDS.

  clustered: the nearest of K centroids is the bucket, which is very uneven. dispersed: ceil(V/K)
  clusters of K members on average, whose members are spread over the buckets. Differs: the paper's
  number of clusters for dispersed is unknown; this number is this project's choice.

  Args:
    counts:     i64[V], see `count`.
    embeddings: f32[V,D] of a trained model, for the kinds EMBEDDED.
  """
  if kind == 'random':
    return tables.random_table(len(counts), experts, seed)
  if kind == 'balanced':
    return tables.balanced_table(counts, experts)
  if kind == 'clustered':
    return clusters(embeddings, experts, seed)
  return tables.dispersed_table(clusters(embeddings, -(-len(counts) // experts), seed), counts, experts)


def describe(table, counts, experts):
  """Returns lines that say how even `table` is on the counted text."""
  load = tables.loads(table, counts, experts)
  mean = load.sum() / experts
  top = int(counts.argmax())
  return [f'{len(table):,} ids in {experts} buckets; {load.sum():,} tokens counted, of '
          f'{np.count_nonzero(counts):,} different ids',
          f'largest bucket / mean: {load.max() / mean:.3f}, smallest / mean: {load.min() / mean:.3f}, '
          f'empty: {np.count_nonzero(load == 0)}',
          f'the most frequent id, {top}, alone / mean: {counts[top] / mean:.3f}']
