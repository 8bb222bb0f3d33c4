"""What every source of data must do: rows as promised, the same in any order, on any host, from any step."""

import contextlib
import json

import ml_collections
import numpy as np

from stmoe import declared
from stmoe import errors
from stmoe import lookup
from stmoe.conform import generic
from stmoe.conform.data import written
from stmoe.data import batches as pipeline
from stmoe.data.text import tasks

ROWS, STEPS, MANY = 4, 3, 64                                         # of a batch; batches; rows that are read
UNWRITTEN = 77                           # no row has it everywhere
_FACTS = 'keys', 'caches', 'weights', 'files', 'metrics', 'vocabulary', 'recorded'


def says_what_it_is(name: str, **fields) -> None:
  """`kind`, `content`, `targets` and `lengths` are there, and the facts of the opened data."""
  cfg, source, opened = _opened(name, **fields)
  assert isinstance(source.kind, str), f'kind is {source.kind!r}; wanted: what data.json calls such data'
  json.dumps(source.content(), default=lambda section: section.to_dict())
  targets, known = getattr(source, 'targets', 'ids'), _targets()
  assert targets in known, (f'targets={targets!r}{errors.nearest(targets, known)} '
                            f'(there are: {", ".join(known)})')
  lengths = source.lengths(cfg.model)
  assert 'decoder' in lengths and all(length >= 1 for length in lengths.values()), (
      f'lengths are {lengths!r}; wanted: positions of a row in each stack, and those of the targets: decoder')
  absent = [fact for fact in _FACTS if not hasattr(opened, fact)]
  assert not absent, f'the opened data lack {", ".join(absent)}; data/batches.py says what these are'
  assert len(opened.keys) == len(opened.weights), f'{len(opened.keys)} tasks, {len(opened.weights)} weights'
  info = opened.info()
  assert {'vocab', 'vocab_size', 'sources'} <= info.keys() and hasattr(info['vocab'], 'digest'), (
      f'info() has {", ".join(info)}; wanted: vocab, with a digest, vocab_size and sources')


def rows_are_as_promised(name: str, **fields) -> None:
  """Rows of both splits fill what `shapes` promises, in its shapes and types, and some have a weight."""
  _, source, opened = _opened(name, **fields)
  unwritten, weights = set(source.shapes(1)), {}
  for split in tasks.SPLITS:
    typed, wide, marked = (_filled(source, opened, split, **how) for how in (
        {}, dict(dtype=np.float64), dict(before=UNWRITTEN)))
    for entry, array in typed.items():
      assert np.all(np.isfinite(array)), f'{entry} holds what is no finite number, in split {split}'
      assert array.dtype.kind == 'f' or np.all(wide[entry] == np.round(wide[entry])), (
          f'{entry} is {array.dtype} in shapes, and fill writes fractions there')
    unwritten -= {entry for entry, array in marked.items() if np.any(array != UNWRITTEN)}
    weights[split] = [typed[entry].any() for entry in ('weights', 'decoder_loss_weights') if entry in typed]
  assert not unwritten, f'shapes has {", ".join(sorted(unwritten))}, which fill writes into no row'
  for split, some in weights.items():
    assert any(some) or not some, f'all weights are 0 in split {split}, so that nothing is predicted'


def opened_twice_it_is_the_same(name: str, **fields) -> None:
  """Opened twice the batches of training and of evaluation are the same."""
  cfg, _, first = _opened(name, **fields)
  again = pipeline.source(cfg)
  assert first.keys == again.keys, f'opened twice the keys are {first.keys} and {again.keys}'
  _same(_taken(cfg, first), _taken(cfg, again), 'when opened twice')
  _same(_evaluated(cfg, first), _evaluated(cfg, again), 'when opened twice, in evaluation')


def a_row_depends_on_its_number_alone(name: str, **fields) -> None:
  """Evaluation has every row once, the same in whatever order and place of a batch rows are filled."""
  cfg, source, opened = _opened(name, **fields)
  batches = pipeline.eval_batches(cfg, opened=opened)
  for number in sorted({0, len(batches) // 2, len(batches) - 1}, reverse=True):
    alone = pipeline.empty(source, ROWS + 1)
    for at in reversed(range(min(ROWS, batches.num_rows - number * ROWS))):
      rows, row, count = batches.order(number * ROWS + at)
      rows.fill(alone, at + 1, row, count)
    _same([batches[number]], [{entry: array[1:] for entry, array in alone.items()}],
          'in another order or place of a batch')


def hosts_share_the_rows(name: str, **fields) -> None:
  """The batches of two hosts are disjoint parts of the batches of one."""
  cfg, _, opened = _opened(name, **fields)
  for take in (_taken, _evaluated):
    parts = [take(cfg, opened, shard, 2) for shard in range(2)]
    joined = [{entry: np.concatenate([part[entry] for part in batch]) for entry in batch[0]}
              for batch in zip(*parts)]
    _same(take(cfg, opened), joined, 'on two hosts')


def goes_on_from_any_step(name: str, **fields) -> None:
  """Training that goes on from a position gets the batches that it would have got."""
  cfg, _, opened = _opened(name, **fields)
  with contextlib.closing(pipeline.train_iterator(cfg, opened=opened)) as batches:
    for _ in range(STEPS):
      next(batches)
    position = json.loads(json.dumps(batches.get_state()))
    following = [next(batches) for _ in range(STEPS)]
  _same(following, _taken(cfg, opened, position=position), 'after going on from a position')


def the_seed_orders_training(name: str, **fields) -> None:
  """Another seed gives training other batches, where there are many rows, and evaluation the same."""
  cfg, _, opened = _opened(name, **fields)
  other = ml_collections.ConfigDict(cfg.to_dict() | dict(seed=1))
  seeded = pipeline.source(other)
  _same(_evaluated(cfg, opened), _evaluated(other, seeded), 'with another seed, in evaluation')
  if hasattr(opened, 'feed') or sum(len(opened.rows(task, 'train', 0, True)) for task in opened.keys) > ROWS:
    one, two = _taken(cfg, opened), _taken(other, seeded)
    assert any(not np.array_equal(batch[entry], beside[entry]) for batch, beside in zip(one, two)
               for entry in batch), 'another seed gives the same batches of training'


@generic.cached
def _opened(name, **fields):
  """(configuration, source, opened data) of source `name`."""
  sizes = dict(batch_size=ROWS)
  model = dict(image_size=8, patch_size=4)                           # by which images say their `lengths`
  cfg = ml_collections.ConfigDict(dict(seed=0, train=sizes, eval=sizes, model=model,
                                       data=_section(name, fields)))
  return cfg, lookup.source(cfg.data), pipeline.source(cfg)


def _section(name, fields):
  """Section `data` for source `name` with `fields`; raises generic.Unknown."""
  own_fields, values = lookup.fields('source', name), dict(fields)
  for told_by, known in (('join', _of_texts()), ('image_size', _of_images())):
    values = known | values if told_by in own_fields else values
  values |= dict(source=name, shuffle=True, eval_split='validation', cache_dir=str(written.folder()))
  for key, field in lookup.beside('source', name, values).items():
    if field.default is declared.REQUIRED and key not in values:
      raise generic.Unknown(f'source {name}', key)
  return values


def _of_texts():
  """What a source of texts needs and cannot know."""
  return dict(objective='lm', length=32, task='text', files=written.texts()[:1], documents='line',
              vocab='bytes', extra_ids=100, mixture=(), join=True, pack=True, inputs_length=32,
              targets_length=16)


def _of_images():
  """What a source of images needs and cannot know."""
  return dict(task='digits', files=(), label='', image_size=8, channels=1, central=1.0, crop=0.5, flip=True,
              mean=0.5, std=0.5)


class _Batch(dict):
  """A batch of which an entry is said that `shapes` does not have."""

  def __missing__(self, entry):
    raise AssertionError(f'fill writes {entry!r}, which shapes does not have: {", ".join(self)}')


def _filled(source, opened, split, dtype=None, before=0):
  """The first rows of each task of a split, in arrays of `before` of the promised or another dtype."""
  rows = [(part, row) for task in opened.keys for part in [opened.rows(task, split, 0, split == 'train')]
          for row in range(min(len(part), MANY))]
  assert rows, f'split {split} has no rows'
  batch = _Batch({entry: np.full(array.shape, before, dtype or array.dtype)
                  for entry, array in pipeline.empty(source, len(rows)).items()})
  for at, (part, row) in enumerate(rows):
    part.fill(batch, at, row, row)
  return batch


def _taken(cfg, opened, shard=0, num_shards=1, position=None):
  """The first batches of training, or those after a position."""
  with contextlib.closing(pipeline.train_iterator(cfg, shard, num_shards, opened)) as batches:
    if position:
      batches.set_state(position)
    return [next(batches) for _ in range(STEPS)]


def _evaluated(cfg, opened, shard=0, num_shards=1):
  """The first batches of evaluation."""
  batches = pipeline.eval_batches(cfg, shard, num_shards, opened)
  return [batches[number] for number in range(min(len(batches), STEPS))]


def _same(batches, others, said):
  """Raises AssertionError unless lists of batches are equal; `said` is what the others are."""
  for one, other in zip(batches, others, strict=True):
    for entry, array in one.items():
      assert np.array_equal(array, other[entry]), (
          f'{entry} is another {said}; wanted: a row is a function of its number and of the seed')


def _targets():
  """What sources may say that a model must predict."""
  return sorted({kind for name in lookup.available('target')
                 for kind in getattr(lookup.constructor('target', name), 'kinds', ())})
