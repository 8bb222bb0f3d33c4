"""The cache: what is in it, that it is complete or absent, and the mistakes around it."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from stmoe import errors
from stmoe.cli import main
from stmoe.data.text import cache
from stmoe.data.text import stream
from stmoe.data.text import tasks
from stmoe.data.text import vocab

ROOT = pathlib.Path(__file__).parents[3]
MODEL = ROOT / 'tests' / 'data' / 'sentencepiece' / 'seqio_test_26.model'


def cached(files, vocabulary=None, cache_dir=None):
  return cache.of(tasks.get('text', files), vocabulary or vocab.Bytes(), cache_dir)


def documents(found, split, eos=True):
  s = stream.Stream(found, split, eos)
  ends = s.document_ends.tolist()
  return [s.read(a, b) for a, b in zip([0] + ends, ends, strict=False)]


@pytest.mark.parametrize('spec', ['bytes', str(MODEL), 'train:300'])
def test_a_cache_holds_the_tokens_of_every_document(files, cache_dir, spec, monkeypatch):
  monkeypatch.setattr(cache, 'PIECE', 100)
  monkeypatch.setattr(cache, 'BATCH_BYTES', 3000)
  task = tasks.get('text', files)
  v = cache.vocabulary_of(spec, [task], 10, cache_dir / 'small')
  found = cache.of(task, v, cache_dir / 'small')
  for split in tasks.SPLITS:
    texts = list(task.documents(split))
    both = documents(found, split, eos=False), documents(found, split)
    for text, ids, with_eos in zip(texts, *both, strict=True):
      assert ids.tolist() == v.encode([text])[0].tolist() == with_eos[:-1].tolist()
      assert with_eos[-1] == 1
      assert v.decode(with_eos) == text or spec == str(MODEL)
    facts = found.facts['splits'][split]
    assert facts['documents'] == len(texts)
    assert facts['bytes'] == task.size(split) == len(''.join(texts).encode())
    assert facts['tokens'] == sum(map(len, documents(found, split)))


def test_any_part_of_a_stream(files, cache_dir, monkeypatch):
  monkeypatch.setattr(cache, 'PIECE', 7)
  found = cached(files, cache_dir=cache_dir / 'tiny')
  for eos in (False, True):
    whole = np.concatenate(documents(found, 'validation', eos))
    s = stream.Stream(found, 'validation', eos)
    assert len(s) == len(whole)
    for start, stop in [(0, 1), (6, 8), (0, 7), (7, 14), (13, 300), (len(s) - 9, len(s)), (0, len(s))]:
      np.testing.assert_array_equal(s.read(start, stop), whole[start:stop])


@pytest.mark.parametrize('length', [1, 10, 64, 10**6])
@pytest.mark.parametrize('join', [False, True])
def test_segments_cover_the_stream_once(files, cache_dir, length, join):
  s = stream.Stream(cached(files, cache_dir=cache_dir), 'train')
  segments = stream.segments(s, length, join)
  assert segments[0, 0] == 0 and segments[-1, 1] == len(s)
  np.testing.assert_array_equal(segments[1:, 0], segments[:-1, 1])
  sizes = segments[:, 1] - segments[:, 0]
  assert sizes.min() >= 1 and sizes.max() <= length
  if join:
    assert (sizes[:-1] == min(length, len(s))).all()
  else:
    assert set(s.document_ends) <= set(segments[:, 1])


def test_a_cache_is_made_once_and_again_when_something_changes(tmp_path, capfd):
  (tmp_path / 'a.txt').write_text('line\n' * 100)
  made = cached([tmp_path / 'a.txt'], cache_dir=tmp_path / 'c')
  assert 'caching text train' in capfd.readouterr().err
  assert cached([tmp_path / 'a.txt'], cache_dir=tmp_path / 'c').facts == made.facts
  assert capfd.readouterr().err == ''
  other = cached([tmp_path / 'a.txt'], vocab.Pieces(MODEL), cache_dir=tmp_path / 'c')
  (tmp_path / 'a.txt').write_text('line\n' * 99 + 'lime\n')
  changed = cached([tmp_path / 'a.txt'], cache_dir=tmp_path / 'c')
  assert len({made.key, other.key, changed.key}) == 3
  assert len(list((tmp_path / 'c').iterdir())) == 3


def test_the_key_does_not_depend_on_sentinels_of_bytes(files, cache_dir):
  task = tasks.get('text', files)
  assert cache.of(task, vocab.Bytes(0), cache_dir).key == cache.of(task, vocab.Bytes(100), cache_dir).key


def test_a_killed_process_leaves_no_cache_and_the_next_sweeps(tmp_path):
  (tmp_path / 'a.txt').write_text('line\n' * 100)
  code = ('import os, sys\nfrom stmoe.data.text import cache, tasks, vocab\n'
          'write = cache._write_split\n'
          'def stop(path, *args):\n'
          '  write(path, *args)\n'
          '  os.kill(os.getpid(), 9)\n'
          'cache._write_split = stop\n'
          'cache.of(tasks.get("text", [sys.argv[1]]), vocab.Bytes(), sys.argv[2])\n')
  done = subprocess.run([sys.executable, '-c', code, tmp_path / 'a.txt', tmp_path / 'c'], cwd=ROOT)
  assert done.returncode == -9
  left, = (tmp_path / 'c').iterdir()
  assert 'unfinished' in left.name and (left / 'train.array_record').exists()
  found = cached([tmp_path / 'a.txt'], cache_dir=tmp_path / 'c')
  assert list((tmp_path / 'c').iterdir()) == [found.path]


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'),
                                   ValueError('UNKNOWN: No space left on device; write failed')])
def test_a_full_disk(tmp_path, monkeypatch, error):
  (tmp_path / 'a.txt').write_text('line\n' * 100)

  def full(*args):
    raise error
  monkeypatch.setattr(np, 'save', full)
  with pytest.raises(errors.UserError, match='no space left on device for the cache'):
    cached([tmp_path / 'a.txt'], cache_dir=tmp_path / 'c')
  assert list((tmp_path / 'c').iterdir()) == []


def test_a_folder_that_cannot_be(tmp_path):
  (tmp_path / 'c').write_text('a file')
  (tmp_path / 'a.txt').write_text('line\n' * 100)
  with pytest.raises(errors.UserError, match='cannot write the cache .* set --config.data.cache_dir'):
    cached([tmp_path / 'a.txt'], cache_dir=tmp_path / 'c' / 'd')


def test_when_another_process_is_faster(tmp_path, monkeypatch):
  (tmp_path / 'a.txt').write_text('line\n' * 100)
  write = cache._write

  def slow(path, *args):
    write(path, *args)
    monkeypatch.setattr(cache, '_write', write)
    monkeypatch.setattr(os, 'getpid', lambda: 1)  # alive, and another
    cached([tmp_path / 'a.txt'], cache_dir=tmp_path / 'c')
    monkeypatch.undo()
  monkeypatch.setattr(cache, '_write', slow)
  found = cached([tmp_path / 'a.txt'], cache_dir=tmp_path / 'c')
  assert list((tmp_path / 'c').iterdir()) == [found.path]
  assert len(documents(found, 'train')) == 1


def test_the_command(tmp_path, capsys):
  (tmp_path / 'a.txt').write_text('some line\n' * 100)
  arguments = ['cache', 'text', '--files', str(tmp_path / 'a.txt'), '--cache-dir', str(tmp_path / 'c')]
  assert main.main(arguments + ['--vocab', str(MODEL), '--extra-ids', '4']) == 0
  said = capsys.readouterr().out
  assert 'train: 1 documents, 950 bytes' in said and '30 ids' in said
  assert main.main(arguments + ['--train-vocab', 'many']) == 2
  assert main.main(['cache', 'txt']) == 2
  assert "nearest: text" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == 'win32', reason='needs a soft limit of file size')
def test_a_real_write_error_is_one_line(tmp_path):
  (tmp_path / 'a.txt').write_text('line\n' * 20000)
  code = ('import resource, signal, sys\nfrom stmoe import errors\n'
          'from stmoe.data.text import cache, tasks, vocab\n'
          'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
          'cache.OPTIONS = "group_size:1,uncompressed"\n'
          'resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))\n'
          'try:\n  cache.of(tasks.get("text", [sys.argv[1]]), vocab.Bytes(), sys.argv[2])\n'
          'except errors.UserError as e:\n  print(e)\n')
  done = subprocess.run([sys.executable, '-c', code, tmp_path / 'a.txt', tmp_path / 'c'], cwd=ROOT, text=True,
                        capture_output=True)
  assert 'no space left on device for the cache' in done.stdout, done.stderr
  assert list((tmp_path / 'c').iterdir()) == []


def test_the_standard_library_is_cached_in_seconds(tmp_path):
  start = time.time()
  found = cache.of(tasks.get('stdlib'), vocab.Bytes(), tmp_path)
  assert time.time() - start < 20  # half a second on an idle machine
  assert found.facts['splits']['train']['bytes'] > 4e6
