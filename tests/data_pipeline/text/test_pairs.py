"""Pairs: parallel text and jsonl to encoder and decoder rows; what a user can get wrong."""

import gzip
import json

import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.data import batches as pipeline
from stmoe.data.text import cache
from stmoe.data.text import corpus
from stmoe.data.text.objectives import seq2seq
from stmoe.data.text import tasks
from stmoe.data.text import vocab

SOURCES = [f'the dog number {i} runs' + ' far' * (i % 5) for i in range(60)]
TARGETS = [f'der Hund Nummer {i} läuft' + ' weit' * (i % 7) for i in range(60)]
BYTES = vocab.Bytes()


@pytest.fixture(scope='module')
def parallel(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pairs')
  (folder / 'a.en').write_text('\n'.join(SOURCES) + '\n')
  (folder / 'a.de.gz').write_bytes(gzip.compress('\n'.join(TARGETS).encode()))
  return [str(folder / 'a.en'), str(folder / 'a.de.gz')]


@pytest.fixture
def translation(config, parallel):
  """Returns make(**fields of data) -> configuration of the pairs."""
  def make(**fields):
    fields = dict(files=tuple(parallel), inputs_length=48, targets_length=64) | fields
    return config(task='pairs', objective='seq2seq', join=False, **fields)
  return make


def texts(found):
  return [text for _, text in found]


def test_parallel_text_and_jsonl_are_the_same_pairs(parallel, tmp_path):
  found = corpus.pairs(parallel)
  assert texts(found['train'])[:4] == [SOURCES[0], TARGETS[0], SOURCES[1], TARGETS[1]]
  assert texts(found['validation'])[::2] == SOURCES[57:] and len(found['train']) == 2 * 57
  lines = [json.dumps(dict(inputs=s, targets=t)) for s, t in zip(SOURCES, TARGETS)]
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  assert corpus.pairs([tmp_path / 'a.jsonl']) == found
  (tmp_path / 'b.jsonl').write_text('\n'.join(lines[:2]) + '\n\n')
  assert texts(corpus.pairs([tmp_path / 'a.jsonl', tmp_path / 'b.jsonl'])['validation']) == [
      SOURCES[0], TARGETS[0], SOURCES[1], TARGETS[1]]
  assert len(corpus.pairs([*parallel, *parallel])['validation']) == 120


def test_an_empty_side_leaves_the_pair_out(tmp_path):
  (tmp_path / 'a').write_text('one\n\nthree\nfour\n')
  (tmp_path / 'b').write_text('eins\r\nzwei\r\n \r\nvier\r\n')
  found = corpus.pairs([tmp_path / 'a', tmp_path / 'b'])
  assert (texts(found['train']), texts(found['validation'])) == (['one', 'eins'], ['four', 'vier'])


def segments(batch, row, side):
  ids, numbers = batch[f'{side}_segment_ids'][row], range(1, batch[f'{side}_segment_ids'][row].max() + 1)
  name = 'encoder_input_tokens' if side == 'encoder' else 'decoder_target_tokens'
  return [batch[name][row][ids == n].tolist() for n in numbers]


def test_every_training_pair_is_in_one_packed_row_with_its_own_source(translation):
  cfg = translation(inputs_length=100, targets_length=120)
  batch_of, seen, packed = pipeline.train_iterator(cfg), [], 0
  for _ in range(3):                                                 # an epoch and more
    batch = next(batch_of)
    for row in range(8):
      found = [segments(batch, row, side) for side in ('encoder', 'decoder')]
      assert len(found[0]) == len(found[1])
      packed += len(found[0]) > 1
      for source, target in zip(*found):
        assert source[-1] == target[-1] == 1
        seen.append((BYTES.decode(source), BYTES.decode(target)))
      assert (batch['decoder_loss_weights'][row] == (batch['decoder_segment_ids'][row] > 0)).all()
  batch_of.close()
  assert set(seen) == set(zip(SOURCES[:57], TARGETS[:57])) and packed > 10


def test_evaluation_has_one_pair_a_row_in_order(translation):
  batches = pipeline.eval_batches(translation())
  assert batches.num_rows == 3
  batch = batches[0]
  for row in range(3):
    ids = BYTES.encode([SOURCES[57 + row], TARGETS[57 + row]])
    assert segments(batch, row, 'encoder') == [[*ids[0], 1]]
    assert segments(batch, row, 'decoder') == [[*ids[1], 1]]
    assert batch['decoder_input_tokens'][row, :3].tolist() == [0, *ids[1][:2]]
  assert not batch['decoder_loss_weights'][3:].any()


def test_long_sides_are_cut_and_keep_their_eos():
  task = seq2seq.Seq2Seq(BYTES, inputs_length=4, targets_length=3)
  tokens = np.array([10, 11, 12, 13, 14, 1, 20, 21, 1], np.uint16)
  example = task.example(tokens, None)
  assert example['encoder'].tolist() == [10, 11, 12, 1] and example['decoder'].tolist() == [20, 21, 1]
  assert task.example(np.array([9, 1, 20, 21, 22, 23, 1]), None)['decoder'].tolist() == [20, 21, 1]
  assert task.lengths(np.array([[6, 3], [2, 9]])).tolist() == [[4, 3], [2, 3]]


def test_a_vocabulary_is_trained_on_both_sides(translation, cache_dir):
  found, = lookup.source(translation(vocab='train:320').data).open_caches().values()
  ids = found.vocabulary.encode(['Hund läuft', 'dog runs'])
  assert all(2 not in i for i in ids) and found.facts['splits']['train']['documents'] == 114


def test_pairs_of_the_standard_library(tmp_path):
  (tmp_path / 'a.py').write_text('"""Module."""\n\n' + ''.join(
      f'def f{i}(a, b={i}):\n  """Returns a plus {i}.\n\n  More.\n  """\n  return a\n\n' for i in range(9)))
  for i in range(40):
    (tmp_path / f'b{i}.py').write_text((tmp_path / 'a.py').read_text())
  found = corpus.stdlib_pairs(tmp_path)
  assert texts(found['train'])[:4] == ['Returns a plus 0.', 'def f0(a, b=0)',
                                       'Returns a plus 1.', 'def f1(a, b=1)']
  assert found['validation']


@pytest.mark.parametrize('names, content, message', [
    (['a'], ['x\n'], 'task pairs needs SOURCE,TARGET'),
    (['a', 'b.jsonl'], ['x\n', '{}'], 'task pairs needs SOURCE,TARGET'),
    (['a', 'b'], ['x\ny\n', 'x\n'], 'has 2 lines and .*b has 1'),
    (['a.jsonl'], ['{"inputs": "x", "targets": "y"}\n{"inputs": "x"}'], 'a.jsonl, line 2 is no object'),
    (['a.jsonl'], ['{"inputs": "x", "targets": 3}'], 'line 1'), (['a.jsonl'], ['nonsense'], 'line 1'),
    (['a', 'b'], ['x\n', 'y\n'], 'too few pairs')])
def test_mistakes_in_files(tmp_path, names, content, message):
  for name, text in zip(names, content):
    (tmp_path / name).write_text(text)
  with pytest.raises(errors.UserError, match=message):
    corpus.pairs([tmp_path / name for name in names])
  with pytest.raises(errors.UserError, match="no file 'nowhere'"):
    corpus.pairs(['nowhere', 'nowhere'])


@pytest.mark.parametrize('fields, message', [
    (dict(join=True), 'data.join=False .now True'), (dict(task='text'), 'a task of pairs .now text'),
    (dict(targets_length=1), 'data.targets_length=1: both must be at least 2')])
def test_mistakes_in_a_configuration(config, translation, files, fields, message):
  cfg = translation()
  cfg.data.update(fields | (dict(files=tuple(files)) if 'task' in fields else {}))
  with pytest.raises(errors.UserError, match=message):
    pipeline.eval_batches(cfg)


@pytest.mark.slow
@pytest.mark.tf
def test_seqio_gives_the_same_pairs(parallel, cache_dir):
  from stmoe.data.text import declare
  task = tasks.get('pairs', parallel)
  found = cache.of(task, BYTES, cache_dir)
  theirs = declare.add(task, BYTES, 'test_pairs').get_dataset(
      sequence_length=None, split='validation', shuffle=False, try_in_mem_cache=False)
  examples = list(theirs.as_numpy_iterator())
  assert [e['inputs'].tolist() for e in examples] == [[*BYTES.encode([s])[0], 1] for s in SOURCES[57:]]
  assert [e['targets'].tolist() for e in examples] == [[*BYTES.encode([t])[0], 1] for t in TARGETS[57:]]
  assert found.facts['paired']
  assert list(declare.documents(task, 'validation'))[:2] == [SOURCES[57], TARGETS[57]]
