"""Corpora that are not held whole: in shards and streamed, the same batches, from any place."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from stmoe import errors
from stmoe.cli import main
from stmoe.data import batches as pipeline
from stmoe.data import record
from stmoe.data.large import chunks
from stmoe.data.large import corpora
from stmoe.data.large import maker
from stmoe.data.large import sharded
from stmoe.data.large import windows
from stmoe.data.text import documents
from stmoe.data.text import stream
from stmoe.data.text import vocab

ROOT = pathlib.Path(__file__).parents[3]
TEXTS = [f'{i}: ' + ' '.join(f'word{i * j % 11}é' for j in range(5 + i % 29)) for i in range(300)]
SMALL = 0.004                            # millions of bytes: 11 shards


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Two files of JSON lines, and one of text."""
  folder = tmp_path_factory.mktemp('corpus')
  rows = [json.dumps(dict(text=text)) + '\n' for text in TEXTS]
  (folder / 'a.jsonl').write_text(''.join(rows[:120]))
  (folder / 'b.jsonl').write_text(''.join(rows[120:290]))
  (folder / 'c.txt').write_text('\n'.join(TEXTS[290:]))
  return [str(folder / name) for name in ('a.jsonl', 'b.jsonl', 'c.txt')]


@pytest.fixture
def large(config, files, tmp_path):
  """Returns make(cache, **fields) -> a configuration on these files."""
  own = dict(files=tuple(files), documents='line', shard_mb=SMALL, length=256,
             cache_dir=str(tmp_path / 'cache'))
  return lambda cache, **fields: config(**own | dict(cache=cache) | fields)


def made(files, cache_dir, size=4000):
  """All Shards, made in this process."""
  task = corpora.of('text', files, documents='line')
  found = sharded.of(task, vocab.Bytes(), size, cache_dir)
  maker.make(found, 1, {}, show=False)
  return found


def taken(iterator, number):
  return [next(iterator) for _ in range(number)]


def assert_same(got, want):
  for one, other in zip(got, want, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def test_every_document_is_read_once_and_from_any_place_on(files):
  task = corpora.of('text', files, documents='line')
  found = list(task.since())
  held = list(task.documents('validation'))
  assert 5 <= len(held) <= 30
  assert sorted([text for text, _ in found] + held) == sorted(TEXTS)
  assert [text for text, _ in found] == [text for text in TEXTS if text not in held]
  for at in (0, 1, 119, 200, len(found) - 1):
    assert list(task.since(found[at][1])) == found[at + 1:]


def test_the_order_in_which_documents_are_kept_is_that_of_the_whole_cache(files):
  whole = [text.decode() for file in files for text in documents.read(file, apart='line')]
  parts = chunks.of(corpora.of('text', files, documents='line'), 4000)
  held = set(corpora.of('text', files, documents='line').documents('validation'))
  assert [text for chunk in parts for text in chunk.texts] == [text for text in whole if text not in held]


def test_progress_counts_every_byte_of_the_files_once(files):
  task, counts = corpora.of('text', files, documents='line'), []
  *_, (_, last) = task.since(count=counts.append)
  assert sum(counts) == sum(os.path.getsize(file) for file in files) == task.size('train')
  middle = []
  list(task.since((1, 5), count=middle.append))
  assert sum(middle) == sum(counts)
  assert last[0] == 2


@pytest.mark.parametrize('fields', [
    dict(objective='span_corruption', join=False, inputs_length=256, targets_length=128),
    *(pytest.param(fields, marks=pytest.mark.slow)
      for fields in (dict(join=True), dict(join=False), dict(shuffle=False)))])
def test_shards_and_streaming_give_the_same_batches(fields, large, files):
  made(files, large('shards').data.cache_dir)
  one, other = (pipeline.train_iterator(large(cache, **fields)) for cache in ('shards', 'stream'))
  first, rest = taken(one, 8), taken(one, 20)                        # more than an epoch
  assert_same(taken(other, 8), first)
  state = json.loads(json.dumps(other.get_state()))
  assert state['step'] == 8 and state['mark'][2] > 0
  other.close()
  for cache in ('stream', 'shards'):
    resumed = pipeline.train_iterator(large(cache, **fields))
    resumed.set_state(state)
    assert_same(taken(resumed, 20), rest)
    resumed.close()


def test_an_epoch_has_every_token_once_and_another_order_each_time(large):
  source = pipeline.source(large('stream'))
  feed = source.feed(lambda *parts: hash(parts) % 2**40, True)
  seen, order, n = [[], []], [[], []], 0
  while (epoch := feed(n) and feed.mark(n)[1]) < 2:
    rows, row, number = feed(n)
    assert number == n
    seen[epoch].append(rows.stream.read(*rows.segments[row]).tobytes())
    order[epoch].append(row)
    n += 1
  assert sorted(seen[0]) == sorted(seen[1]) and seen[0] != seen[1]
  task = source._shards.task
  whole = vocab.Bytes().encode([''.join(text + '\1' for text, _ in task.since())])[0]
  assert sum(map(len, seen[0])) == 2 * len(whole)                    # of two bytes
  assert feed._marks[0] == (0, 0, 0, (0, 0)) and order[0] != sorted(order[0])


def test_the_halves_of_a_job_read_slices_of_the_same_batches(large):
  whole, *parts = (pipeline.train_iterator(large('stream'), shard, number)
                   for shard, number in ((0, 1), (0, 2), (1, 2)))
  for batch, one, other in zip(taken(whole, 5), *(taken(part, 5) for part in parts)):
    for name in batch:
      np.testing.assert_array_equal(batch[name], np.concatenate([one[name], other[name]]))


def test_evaluation_covers_what_was_held_out(large, files):
  texts = list(corpora.of('text', files, documents='line').documents('validation'))
  found = [pipeline.source(large(cache)) for cache in ('shards', 'stream')]
  for source in found:
    info = source.info()
    assert info['num_documents'] == len(texts)
    assert info['num_bytes'] == len(''.join(texts).encode())
  one, other = (list(map(pipeline.eval_batches(large(cache), opened=source).__getitem__, range(2)))
                for cache, source in zip(('shards', 'stream'), found))
  assert_same(one, other)


def test_training_begins_with_the_first_shard_and_waits_for_the_next(large, files, monkeypatch):
  begun, failed = [], []
  monkeypatch.setattr(sharded, 'WAIT', 0.001)
  monkeypatch.setattr(maker, 'beside', lambda found, spec: begun.append(found) or failed.append)
  source = pipeline.source(large('shards'))
  source._shards.write(0)
  feed = source.feed(lambda *parts: 7, True)
  rows, _, _ = feed(0)
  assert not begun
  beyond = len(rows)

  def alive():
    failed.append('looked')
    raise errors.UserError('the disk is full')
  monkeypatch.setattr(maker, 'beside', lambda found, spec: begun.append(found) or alive)
  with pytest.raises(errors.UserError, match='the disk is full'):
    feed(beyond)
  assert begun == [source._shards] and failed == ['looked']
  source._shards.write(1)
  assert feed(beyond)[0] is not rows


def test_shards_are_made_beside_the_training(large, files):
  iterator = pipeline.train_iterator(large('shards'))
  got = taken(iterator, 8)
  iterator.close()
  assert_same(got, taken(pipeline.train_iterator(large('stream')), 8))


def contents(folder):
  return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*'))
          if path.is_file() and path.name != 'lock'}


def test_a_job_that_was_killed_goes_on_where_it_was(tmp_path, files, capsys):
  command = ['cache', 'text', '--files', *files, '--documents', 'line', '--shards', '--shard-mb', str(SMALL),
             '--processes', '2', '--cache-dir', str(tmp_path)]
  found = sharded.of(corpora.of('text', files, documents='line'), vocab.Bytes(), 4000, tmp_path)
  running = subprocess.Popen([sys.executable, '-m', 'stmoe.cli.main', *command], cwd=ROOT,
                             start_new_session=True)
  while not found.has(1) and running.poll() is None:
    time.sleep(0.005)
  children = pathlib.Path(f'/proc/{running.pid}/task/{running.pid}/children').read_text().split()
  running.kill()
  running.wait()
  while any(pathlib.Path('/proc', pid).exists() for pid in children):             # they end by themselves
    time.sleep(0.01)
  (found.path / '000009.unfinished.host.1').mkdir(exist_ok=True)     # of another machine: left alone
  before = {path: path.stat().st_ino for path in found.path.glob('0?????/*')}
  assert before and not found.facts()
  assert main.main(command) == 0
  assert '11 shards' in capsys.readouterr().out
  assert all(path.stat().st_ino == inode for path, inode in before.items())
  (found.path / '000009.unfinished.host.1').rmdir()
  other = made(files, tmp_path / 'other')
  assert contents(found.path) == contents(other.path)


def test_two_jobs_at_once_make_no_shard_twice(tmp_path, files, monkeypatch):
  written, write = [], sharded.caches.write_texts
  monkeypatch.setattr(sharded.caches, 'write_texts', lambda folder, *args: (
      written.append(folder.name.partition('.')[0]), write(folder, *args))[1])
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    one, other = pool.map(lambda _: made(files, tmp_path).facts(), range(2))
  assert one == other
  assert sorted(written) == [*(f'{number:06}' for number in range(11)), 'validation']


def test_a_process_that_ends_badly_is_a_line(tmp_path, files, monkeypatch):
  found = sharded.of(corpora.of('text', files, documents='line'), vocab.Bytes(), 4000, tmp_path)
  monkeypatch.setattr(maker, 'WORKER', (sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)'))
  with pytest.raises(errors.UserError, match='ended with code -9; the same command goes on'):
    maker.make(found, 2, {}, show=False)
  monkeypatch.setattr(maker, 'WORKER', (sys.executable, '-c', 'print(\'{"error": "a line"}\')'))
  with pytest.raises(errors.UserError, match='^a line$'):
    maker.make(found, 1, {}, show=False, alone=False)


def test_a_damaged_shard_is_made_again(tmp_path, files, capfd):
  found = made(files, tmp_path)
  want = contents(found.path)
  (found.path / '000003' / 'train.array_record').write_bytes(b'x')
  (found.path / '000004' / 'facts.json').unlink()
  (found.path / '000005' / 'facts.json').write_text('{}')
  assert [found.has(number) for number in (3, 4, 5, 6)] == [True, False, False, True]
  for number in (3, 4, 5):
    cache, _ = found.opened(number)
    assert len(stream.Stream(cache, 'train'))
  assert contents(found.path) == want
  assert 'damaged' in capfd.readouterr().err
  assert found.opened(11) is None


def test_a_run_goes_on_without_its_files_once_all_shards_are_there(large, files, tmp_path):
  copies = tuple(str(tmp_path / pathlib.Path(file).name) for file in files)
  for file, copy in zip(files, copies):
    pathlib.Path(copy).write_bytes(pathlib.Path(file).read_bytes())
  cfg = large('shards', files=copies)
  made(copies, cfg.data.cache_dir)
  record.write(tmp_path, cfg, pipeline.source(cfg))
  want = taken(pipeline.train_iterator(cfg), 3)
  pathlib.Path(copies[0]).write_text('{"text": "other"}\n')
  pathlib.Path(copies[1]).unlink()
  opened = pipeline.source(cfg, tmp_path)
  assert opened.recorded
  assert [note.split()[2:4] for note in opened.notes] == [['has', 'changed'], ['is', 'gone']]
  assert_same(taken(pipeline.train_iterator(cfg, opened=opened), 3), want)
  with pytest.raises(errors.UserError, match="no file '.*b.jsonl'"):
    pipeline.source(cfg)
  (opened._shards.path / '000001' / 'facts.json').unlink()
  with pytest.raises(errors.UserError, match='000001: is damaged or gone, and the files it was made of are'):
    opened._shards.opened(1)


def test_another_corpus_or_another_size_is_not_the_same_data(large, tmp_path):
  state = pipeline.train_iterator(large('stream')).get_state()
  for fields in (dict(shard_mb=0.005), dict(documents='file'), dict(vocab=str(ROOT / (
      'tests/data/sentencepiece/seqio_test_26.model')))):
    with pytest.raises(errors.UserError, match='the data has changed'):
      pipeline.train_iterator(large('stream', **fields)).set_state(state)


@pytest.mark.parametrize('fields, said', [
    (dict(mixture=('stdlib',)), "data.mixture=.* nearest: --config.data.cache=whole"),
    (dict(objective='seq2seq', inputs_length=8, targets_length=8), "but data.objective='seq2seq'"),
    (dict(eval_split='train'), "but data.eval_split='train'"),
    (dict(task='pairs', files=()), 'pairs'), (dict(files=('absent.txt',)), "no file 'absent.txt'"),
    (dict(task='stdlib', documents='', files=()), None), (dict(files=()), 'data.files is empty')])
def test_what_is_for_whole_caches_alone_is_a_line(fields, said, large):
  if said is None:
    assert len(taken(pipeline.train_iterator(large('stream', **fields)), 1)) == 1
    return
  with pytest.raises(errors.UserError, match=said) as error:
    pipeline.source(large('stream', **fields))
  assert '\n' not in str(error.value)


def test_too_few_documents_to_hold_some_out(large, tmp_path, capsys):
  (tmp_path / 'a.txt').write_text('one\ntwo\n')
  for cache in ('shards', 'stream'):
    with pytest.raises(errors.UserError, match='no document could be held out .*nearest: .*cache=whole'):
      pipeline.source(large(cache, files=(str(tmp_path / 'a.txt'),)))
  assert main.main(['cache', 'text', '--files', str(tmp_path / 'a.txt'), '--shards', '--cache-dir',
                    str(tmp_path / 'cache')]) == 2
  said = capsys.readouterr().err                                     # which has no --config.data.cache
  assert said.startswith('stmoe: --shards: no document') and said.endswith('; nearest: without --shards\n')
  assert not any((tmp_path / 'cache').iterdir())
  with pytest.raises(errors.UserError, match='cannot write the cache .* set --config.data.cache_dir'):
    made([str(tmp_path / 'a.txt')], tmp_path / 'a.txt')
  with pytest.raises(errors.UserError, match='reads the whole text at once'):
    pipeline.lookup.source(large('shards').data).open_caches()


def test_an_error_of_what_is_made_ahead_comes_where_it_belongs():
  def items():
    yield 1
    raise errors.UserError('the second')
  ahead = windows.Ahead(items())
  assert next(ahead) == 1
  for _ in range(2):
    with pytest.raises(errors.UserError, match='the second'):
      next(ahead)
  assert list(windows.Ahead(iter('abc'))) == ['a', 'b', 'c']


@pytest.mark.parametrize('cache', ['stream', 'shards'])
def test_a_thread_that_waits_for_a_window_ends_when_no_more_is_wanted(cache, large, monkeypatch):
  monkeypatch.setattr(maker, 'beside', lambda found, spec: lambda: None)
  feed = pipeline.source(large(cache)).feed(lambda *parts: 7, True)
  still = threading.Event()
  monkeypatch.setattr(chunks, 'held', lambda *args: still.wait(30))  # a window that takes long
  waiting = concurrent.futures.ThreadPoolExecutor().submit(feed, 0)
  time.sleep(0.05)
  feed.close()
  try:
    assert isinstance(waiting.exception(10), windows.Closed)
  finally:
    still.set()


def test_a_worker_ends_with_the_one_that_started_it(tmp_path):
  worker = subprocess.Popen(maker.WORKER, stdin=subprocess.PIPE, cwd=ROOT)
  time.sleep(0.05)
  worker.stdin.close()
  assert worker.wait(60) != -signal.SIGKILL
