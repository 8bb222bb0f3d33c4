"""Tables of Hash layers (arXiv:2106.04426): i32[V], the bucket of every id of a vocabulary.

Tables are made by numpy, once: at the construction of a router or before training. Letters: V ids, K buckets.
"""

import dataclasses
import heapq
import pathlib
import random

import numpy as np

from stmoe import files
from stmoe.errors import Damaged
from stmoe.errors import UserError

# Of a table as it is stored: kinds of numbers, and dimensions.
FORM = dict(table=('iu', 1), num_experts=('iu', 0), vocab_size=('iu', 0), kind=('U', 0), vocabulary=('U', 0))


def random_table(vocab_size: int, num_experts: int, seed: int) -> np.ndarray:
  """Returns i32[V]: an independent uniform draw for every id, in the order of the ids.

  The draws of the reference (facebookresearch/ParlAI, hash_ladder.py: Python's generator, seed 42).
  Further ids of a longer vocabulary leave the buckets of earlier ids as they are.
  Differs: the generator is an own one; the reference reseeds Python's global generator.

  >>> random_table(8, 4, seed=42).tolist(), random_table(10, 4, seed=42).tolist()
  ([0, 0, 2, 1, 1, 1, 0, 0], [0, 0, 2, 1, 1, 1, 0, 0, 3, 0])
  """
  draw = random.Random(seed).randrange
  return np.array([draw(num_experts) for _ in range(vocab_size)], np.int32)


def balanced_table(counts: np.ndarray, num_experts: int) -> np.ndarray:
  """Returns i32[V]: ids by falling count, each to the bucket with the smallest total count so far.

  Ties go to the lower id and to the lower bucket. Ids that were never counted come last, in order,
  each to the bucket with the fewest ids; a greedy choice would put all of them into one bucket.
  An id with over 1/K of all counts has its bucket for itself; balance is then impossible.

  Args:
    counts: i64[V], how often each id occurs in the training corpus.

  >>> balanced_table(np.array([5, 9, 4, 0, 0]), 2).tolist()          # loads 9 and 5 + 4
  [1, 0, 1, 0, 0]
  """
  counts = np.asarray(counts, np.int64)
  order = np.argsort(-counts, kind='stable')
  seen = order[counts[order] > 0]
  table = np.zeros(len(counts), np.int32)
  _deal(table, seen, counts[seen], np.zeros(num_experts, np.int64))
  unseen = np.flatnonzero(counts == 0)
  _deal(table, unseen, np.ones(len(unseen), np.int64), np.bincount(table[seen], minlength=num_experts))
  return table


def _deal(table, ids, weights, loads):
  """Writes into `table` the bucket of each of `ids`: the lightest, which then gains the id's weight."""
  heap = [(int(load), bucket) for bucket, load in enumerate(loads)]
  heapq.heapify(heap)
  for i, weight in zip(ids, weights):
    load, bucket = heap[0]
    table[i] = bucket
    heapq.heapreplace(heap, (load + int(weight), bucket))


def dispersed_table(clusters: np.ndarray, counts: np.ndarray, num_experts: int) -> np.ndarray:
  """Returns i32[V]: the members of each cluster spread over different buckets, buckets balanced.

  Similar tokens then meet different experts. Ids are dealt by falling count. An id goes to the bucket with
  the fewest members of its cluster; among such buckets to that with the smallest total count, then to the
  lowest. For ids that were never counted it is the bucket with the fewest ids. The paper does not say how
  members are spread.

  Args:
    clusters: i32[V], the cluster of each id.
    counts:   i64[V], how often each id occurs in the training corpus.

  >>> dispersed_table(np.array([0, 0, 1, 1]), np.array([5, 4, 3, 2]), 2).tolist()
  [0, 1, 1, 0]
  """
  counts, clusters = np.asarray(counts, np.int64), np.asarray(clusters)
  members = np.zeros((int(clusters.max()) + 1, num_experts), np.int64)
  loads, sizes = np.zeros(num_experts, np.int64), np.zeros(num_experts, np.int64)
  table = np.zeros(len(counts), np.int32)
  for i in np.argsort(-counts, kind='stable'):
    bucket = np.lexsort((loads if counts[i] else sizes, members[clusters[i]]))[0]    # the lowest on ties
    table[i] = bucket
    members[clusters[i], bucket] += 1
    loads[bucket] += counts[i]
    sizes[bucket] += 1
  return table


def loads(table: np.ndarray, counts: np.ndarray, num_experts: int) -> np.ndarray:
  """Returns i64[K]: the total count of the ids of each bucket.

  >>> loads(np.array([1, 0, 1]), np.array([5, 9, 4]), 3).tolist()
  [9, 9, 0]
  """
  return np.bincount(table, np.asarray(counts), num_experts).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class TableFile:
  """A table as it is stored: an .npz of numbers and text, read without pickle.

  table: i32[V]; num_experts: K; kind: how the table was made; vocabulary: digest of the vocabulary whose
  ids the table hashes (see `stmoe.data.text.vocab`).
  """
  table: np.ndarray
  num_experts: int
  kind: str
  vocabulary: str

  def write(self, path: pathlib.Path | str) -> None:
    """Writes the file at `path`."""
    with open(path, 'wb') as f:                                      # np.savez would add .npz to a name
      np.savez(f, **dataclasses.asdict(self), vocab_size=len(self.table))


def read(path: pathlib.Path | str) -> TableFile:
  """Returns the TableFile at `path`; raises UserError if there is no file or the file is something else."""
  if not pathlib.Path(path).exists():
    raise UserError(f'no hash table {str(path)!r}; stmoe tables makes one')
  try:
    fields = files.read_arrays(path)
  except Damaged as error:
    raise UserError(f'{path} is not a hash table of stmoe tables ({error.reason})') from error
  wrong = [name for name, (kinds, ndim) in FORM.items()
           if name not in fields or fields[name].dtype.kind not in kinds or fields[name].ndim != ndim]
  if wrong:
    raise UserError(f'{path} is not a hash table of stmoe tables (it has no {wrong[0]})')
  ids, experts, size = fields['table'], int(fields['num_experts']), int(fields['vocab_size'])
  if not 0 < len(ids) == size or ids.min() < 0 or ids.max() >= experts:
    raise UserError(f'{path}: its table is not one bucket below {experts} for each of its {size} ids')
  return TableFile(ids.astype(np.int32), experts, str(fields['kind']), str(fields['vocabulary']))
