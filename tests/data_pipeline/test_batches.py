"""Batches: deterministic, resumable anywhere, the same for any number of shards, every token once."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from stmoe import errors
from stmoe.data import batches as pipeline
from stmoe.data.text.objectives import span_corruption
from stmoe.data.text import tasks

ROOT = pathlib.Path(__file__).parents[2]
KINDS = {
    'lm': dict(objective='lm'),
    'lm_apart': dict(objective='lm', join=False),
    'prefix_lm': dict(objective='prefix_lm'),
    'span_corruption': dict(objective='span_corruption'),
    'span_corruption_apart': dict(objective='span_corruption', join=False),
    'unpacked': dict(objective='span_corruption', join=False, pack=False),
}


@pytest.fixture(params=KINDS)
def cfg(request, config):
  return config(**KINDS[request.param])


def take(batches, n):
  return [next(batches) for _ in range(n)]


def same(one, other):
  pairs = list(zip(one, other, strict=True))
  return all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in pairs)


def segments_of(batch, side='decoder'):
  """The tokens of every segment of every row, checking ids and positions on the way."""
  tokens = batch['decoder_target_tokens' if side == 'decoder' else 'encoder_input_tokens']
  ids, positions = batch[f'{side}_segment_ids'], batch[f'{side}_positions']
  found = []
  for row in range(len(tokens)):
    for segment in range(1, ids[row].max(initial=0) + 1):
      where = np.flatnonzero(ids[row] == segment)
      assert where.tolist() == list(range(where[0], where[-1] + 1))
      assert positions[row, where].tolist() == list(range(len(where)))
      found.append(tokens[row, where])
    assert not tokens[row, ids[row] == 0].any()
  return found


def test_batches_have_the_names_shapes_and_shift_of_the_contract(cfg):
  for batch in take(pipeline.train_iterator(cfg), 3):
    span = cfg.data.objective == 'span_corruption'
    lengths = dict(encoder=64, decoder=32) if span else dict(decoder=64)
    names = {'decoder_target_tokens', 'decoder_input_tokens', 'decoder_loss_weights', 'decoder_segment_ids',
             'decoder_positions'}
    names |= {'encoder_input_tokens', 'encoder_segment_ids', 'encoder_positions'} if span else set()
    names |= {'decoder_causal_attention'} if cfg.data.objective == 'prefix_lm' else set()
    assert batch.keys() == names
    for name, value in batch.items():
      assert value.dtype == np.int32 and value.shape == (8, lengths[name.split('_')[0]])
    target, inputs = batch['decoder_target_tokens'], batch['decoder_input_tokens']
    ids = batch['decoder_segment_ids']
    shifted = np.pad(target, ((0, 0), (1, 0)))[:, :-1]
    inside = (ids > 0) & (np.pad(ids, ((0, 0), (1, 0)))[:, :-1] == ids)
    np.testing.assert_array_equal(inputs, np.where(inside, shifted, 0))
    assert not (batch['decoder_loss_weights'].astype(bool) & (ids == 0)).any()
    if cfg.data.objective != 'prefix_lm':
      np.testing.assert_array_equal(batch['decoder_loss_weights'], ids > 0)
    segments_of(batch)


def test_the_stream_is_deterministic_and_depends_on_the_seed(cfg):
  first = take(pipeline.train_iterator(cfg), 5)
  assert same(first, take(pipeline.train_iterator(cfg), 5))
  cfg.seed = 1
  assert not same(first, take(pipeline.train_iterator(cfg), 5))


def test_resuming_equals_going_on(cfg):
  whole = take(pipeline.train_iterator(cfg), 40)
  iterator = pipeline.train_iterator(cfg)
  for k in (0, 1, 5, 17, 33):
    fresh = pipeline.train_iterator(cfg)
    take(fresh, k)
    state = json.loads(json.dumps(fresh.get_state()))
    assert state['step'] == k and len(json.dumps(state)) < 100
    iterator.set_state(state)  # forwards and backwards, on one that has already run
    assert same(take(iterator, 7), whole[k:k + 7])
    assert iterator.get_state()['step'] == k + 7


@pytest.mark.parametrize('num_shards', [2, 8])
def test_shards_are_slices_of_the_same_batches(cfg, num_shards):
  whole = take(pipeline.train_iterator(cfg), 12)
  shards = [pipeline.train_iterator(cfg, shard, num_shards) for shard in range(num_shards)]
  one = pipeline.train_iterator(cfg)
  take(one, 4)
  for shard in shards:
    shard.set_state(one.get_state())  # a state of one shard resumes any number
  parts = [take(shard, 8) for shard in shards]
  joined = [{k: np.concatenate([part[t][k] for part in parts]) for k in whole[0]} for t in range(8)]
  assert same(joined, whole[4:])
  evals = [list(pipeline.eval_batches(cfg, shard, num_shards)) for shard in range(num_shards)]
  joined = [{k: np.concatenate([e[t][k] for e in evals]) for k in whole[0]} for t in range(len(evals[0]))]
  assert same(joined, list(pipeline.eval_batches(cfg)))


def test_every_epoch_has_every_token_once_in_another_order(config):
  for fields in (dict(), dict(join=False)):
    cfg = config(**fields)
    cfg.train.batch_size = 1
    task = tasks.get('text', cfg.data.files)
    expected = sorted(b''.join(text.encode() + b'\0' for text in task.documents('train')))
    iterator = pipeline.train_iterator(cfg)
    epochs = []
    for _ in range(2):
      rows, size = [], 0
      while size < len(expected):
        rows.append(next(iterator))
        size += rows[-1]['decoder_loss_weights'].sum()
      ids = np.concatenate([segment for row in rows for segment in segments_of(row)])
      assert sorted(np.where(ids == 1, 0, ids - 3).tolist()) == expected
      epochs.append(rows)
    assert not same(epochs[0], epochs[1])


def test_windows_put_together_are_the_text(config):
  cfg = config(shuffle=False)
  cfg.train.batch_size = 1
  task = tasks.get('text', cfg.data.files)
  size = task.size('train') + 38
  rows = take(pipeline.train_iterator(cfg), math.ceil(size / 64))
  ids = np.concatenate([segment for row in rows for segment in segments_of(row)])
  assert len(ids) == size
  text = np.where(ids == 1, 0, ids - 3).astype(np.uint8).tobytes().decode()
  assert text.removesuffix('\0').split('\0') == list(task.documents('train'))


def test_evaluation_covers_its_split_once_and_is_never_packed(cfg):
  batches = pipeline.eval_batches(cfg)
  found = list(batches)
  assert len(found) == len(batches) > 1
  assert same(found, list(batches)) and same(found[:1], [batches[0]])
  assert {batch['decoder_target_tokens'].shape[0] for batch in found} == {8}
  assert max(batch['decoder_segment_ids'].max() for batch in found) == 1
  facts = pipeline.info(cfg)
  task = tasks.get('text', cfg.data.files)
  texts = list(task.documents('validation'))
  assert facts['num_bytes'] == task.size('validation') and facts['num_documents'] == len(texts) == 2
  assert facts['num_tokens'] == facts['num_bytes'] + 2
  assert facts['bytes_per_token'] == facts['num_bytes'] / facts['num_tokens']
  if cfg.data.objective == 'lm':
    assert sum(batch['decoder_loss_weights'].sum() for batch in found) == facts['num_tokens']
    ids = np.concatenate([segment for batch in found for segment in segments_of(batch)])
    assert facts['vocab'].decode(ids) == texts[0]
    assert facts['vocab'].decode(ids[len(texts[0].encode()) + 1:]) == texts[1]


def test_loss_from_leaves_out_the_first_share_of_every_row(config):
  whole, cfg = config(), config(loss_from=0.2)                       # ceil(0.2 * 64) = 13
  for make in (lambda c: next(pipeline.train_iterator(c)), lambda c: pipeline.eval_batches(c)[0]):
    batch, other = make(cfg), make(whole)
    weights = batch.pop('decoder_loss_weights')
    assert not weights[:, :13].any()
    np.testing.assert_array_equal(weights[:, 13:], other.pop('decoder_loss_weights')[:, 13:])
    assert same([batch], [other])
  with pytest.raises(errors.UserError, match='data.loss_from=1.0 is a share'):
    pipeline.eval_batches(config(loss_from=1.0))


def test_a_padded_row_is_empty(config):
  last = list(pipeline.eval_batches(config(length=128)))[-1]
  rows = last['decoder_loss_weights'].any(axis=1)
  assert 0 < rows.sum() < 8
  assert not any(value[~rows].any() for value in last.values())


def test_packing_puts_short_documents_together_and_never_mixes_them(config):
  packed, alone = (take(pipeline.train_iterator(config(
      objective='span_corruption', join=False, pack=pack, inputs_length=512, targets_length=128)), 20)
      for pack in (True, False))
  assert max(b['decoder_segment_ids'].max() for b in alone) == 1
  assert max(b['decoder_segment_ids'].max() for b in packed) > 1
  real = [np.mean([np.mean(b['encoder_segment_ids'] > 0) for b in batches]) for batches in (packed, alone)]
  assert real[0] > real[1]
  for batch in packed:
    sentinels = 359 - 100
    sides = [segments_of(batch, side) for side in ('encoder', 'decoder')]
    for inputs, targets in zip(*sides, strict=True):  # segment by segment the same sentinels, then EOS
      assert inputs[-1] == targets[-1] == 1
      assert inputs[inputs >= sentinels].tolist() == targets[targets >= sentinels].tolist()


def test_noise_differs_between_epochs(config):
  cfg = config(objective='span_corruption', shuffle=False)
  cfg.train.batch_size = 1
  iterator = pipeline.train_iterator(cfg)
  size = tasks.get('text', cfg.data.files).size('train')
  objective = span_corruption.SpanCorruption(pipeline.info(cfg)['vocab'], inputs_length=64, targets_length=32)
  epoch = math.ceil(size / objective.segment)
  rows = take(iterator, 2 * epoch)
  assert not same(rows[:1], rows[epoch:epoch + 1])


def test_mixtures_keep_their_weights(config, files):
  cfg = config(mixture=(('text', 3.0), ('stdlib', 1.0)))
  batches = take(pipeline.train_iterator(cfg), 50)
  ids = np.concatenate([batch['decoder_target_tokens'] for batch in batches])
  # Every line of the files has an é.
  ours = sum('é'.encode() in (row[row > 2] - 3).astype(np.uint8).tobytes() for row in ids)
  assert 295 <= ours <= 310
  assert same(batches[:9], take(pipeline.train_iterator(config(mixture=dict(text=3.0, stdlib=1.0))), 9))
  facts = pipeline.info(cfg)
  assert facts['num_bytes'] == sum(source['splits']['validation']['bytes'] for source in facts['sources'])
  tokens = sum(batch['decoder_loss_weights'].sum() for batch in pipeline.eval_batches(cfg))
  assert tokens == facts['num_tokens'] == facts['num_bytes'] + facts['num_documents']


def test_a_vocabulary_is_trained_once_on_the_train_splits(config, capfd):
  first = pipeline.info(config(vocab='train:300', extra_ids=7))
  assert 'training a vocabulary' in capfd.readouterr().err
  assert first['vocab_size'] == 307 and first['bytes_per_token'] > 1.2
  batch = next(pipeline.train_iterator(config(vocab='train:300')))
  assert batch['decoder_target_tokens'].max() < 300
  assert 'training' not in capfd.readouterr().err


def test_other_data_is_refused_on_resume(config, files):
  state = pipeline.train_iterator(config()).get_state()
  other = pipeline.train_iterator(config(files=tuple(files[1:])))
  with pytest.raises(errors.UserError, match='the data has changed'):
    other.set_state(state)


@pytest.mark.parametrize('fields, said', [
    (dict(objective='span_coruption'), "none is called 'span_coruption'; nearest: span_corruption"),
    (dict(task='txt'), "no task is called 'txt'; nearest: text"),
    (dict(eval_split='valid'), "data.eval_split='valid'; nearest: validation"),
    (dict(vocab='train:many'), 'not a number of pieces'),
    (dict(vocab='train:²'), 'not a number of pieces'),
    (dict(vocab='train:9999999999'), 'not a number of pieces'),
    (dict(mixture=(('text', 0.0),)), 'weight of text is 0.0'),
    (dict(length=0), 'data.length=0'),
    (dict(objective='span_corruption', extra_ids=2), 'data.extra_ids=2 is too small')])
def test_mistakes_are_one_line(config, fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    pipeline.train_iterator(config(**fields))
  assert '\n' not in str(caught.value)


def test_shards_must_divide_the_batch(config):
  with pytest.raises(errors.UserError, match='train.batch_size=8 is not a multiple of the 3 data shards'):
    pipeline.train_iterator(config(), 0, 3)


def test_the_training_process_does_not_import_tensorflow(files, cache_dir):
  code = ('import sys\nimport ml_collections\nfrom stmoe.data import batches as pipeline\n'
          'cfg = ml_collections.ConfigDict(dict(seed=0, train=dict(batch_size=4), eval=dict(batch_size=4)))\n'
          'cfg.data = dict(task="text", files=tuple(sys.argv[2:]), vocab="train:300", extra_ids=100,\n'
          '                join=True, objective="span_corruption", inputs_length=64, targets_length=32,\n'
          '                pack=True, mixture=(), shuffle=True, eval_split="validation",\n'
          '                cache_dir=sys.argv[1])\n'
          'next(pipeline.train_iterator(cfg)), list(pipeline.eval_batches(cfg)), pipeline.info(cfg)\n'
          'print([name for name in sys.modules if name.partition(".")[0] in ("tensorflow", "seqio")])\n')
  done = subprocess.run([sys.executable, '-c', code, cache_dir, *files], cwd=ROOT, text=True,
                        capture_output=True, check=True)
  assert done.stdout == '[]\n'


def test_a_part_of_a_mixture_has_rows_of_every_task(config):
  cfg = config(mixture=(('text', 3.0), ('stdlib', 1.0)))
  whole, opened = list(pipeline.eval_batches(cfg)), pipeline.source(cfg)
  sizes = [len(opened.rows(name, 'validation', 0, False)) for name in ('stdlib', 'text')]
  most = 40                              # of 8 rows; stdlib has 50 times the rows of text
  part = list(pipeline.eval_batches(cfg, most=most))
  assert len(part) == most
  rows = np.concatenate([batch['decoder_target_tokens'] for batch in part])
  every = np.concatenate([batch['decoder_target_tokens'] for batch in whole])
  first = most * 8 * sizes[0] // sum(sizes)
  assert 0 < most * 8 - first < sizes[1]
  np.testing.assert_array_equal(rows[:first], every[:first])
  np.testing.assert_array_equal(rows[first:], every[sizes[0]:sizes[0] + most * 8 - first])
  assert same(pipeline.eval_batches(cfg, most=len(whole)), whole)


@pytest.mark.parametrize('sizes, limit, taken', [
    ([60, 30, 10], 20, [12, 6, 2]), ([60, 30, 10], 0, [60, 30, 10]), ([99, 1], 10, [9, 1]),
    ([1000, 1, 1], 10, [8, 1, 1]), ([1, 1, 1000], 10, [1, 1, 8]), ([5], 3, [3]), ([5, 5], 50, [5, 5])])
def test_shares_of_a_limit(sizes, limit, taken):
  assert pipeline._first(sizes, limit) == taken
