"""Sealed folders: damage is noticed, what is damaged is made again, and keys do not depend on the seal."""

import json
import os
import pathlib
import shutil

import pytest

from stmoe import errors
from stmoe.data import store
from stmoe.data.text import cache
from stmoe.data.text import stream
from stmoe.data.text import tasks
from stmoe.data.text import vocab


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(text, Cache) that tests copy before they damage it."""
  folder = tmp_path_factory.mktemp('made')
  (folder / 'a.txt').write_text('a line of text\n' * 3000)
  return folder / 'a.txt', cache.of(tasks.get('text', [folder / 'a.txt']), vocab.Bytes(), folder / 'c')


@pytest.fixture
def copied(made, tmp_path):
  """(function that opens a copy of the cache again, its folder, what it holds)."""
  text, found = made
  shutil.copytree(found.path.parent, tmp_path / 'c')
  again = lambda: cache.of(tasks.get('text', [text]), vocab.Bytes(), tmp_path / 'c')
  return again, tmp_path / 'c' / found.path.name, content(found)


def content(found):
  streams = [stream.Stream(found, split) for split in tasks.SPLITS]
  return found.facts, [s.read(0, len(s)).tolist() for s in streams]


FILES = ['facts.json', 'train.array_record', 'train.index.npy', 'validation.array_record',
         'validation.index.npy']


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('how', ['bit', 'cut', 'delete', 'empty'])
def test_a_damaged_cache_is_made_again_and_that_is_said(copied, name, how, capfd):
  again, folder, right = copied
  assert sorted(p.name for p in folder.iterdir()) == FILES
  content_of = bytearray((folder / name).read_bytes())
  if how == 'delete':
    (folder / name).unlink()
  else:
    content_of[len(content_of) // 2] ^= 1
    (folder / name).write_bytes(dict(bit=content_of, cut=content_of[:-9], empty=b'')[how])
  assert content(again()) == right
  said = capfd.readouterr().err
  assert f'the cache {folder} is damaged ({name}' in said and 'it is made again' in said
  assert content(again()) == right and 'damaged' not in capfd.readouterr().err


def test_a_digit_of_the_facts_does_not_change_bits_per_byte(copied):
  again, folder, (facts, _) = copied
  values = json.loads((folder / 'facts.json').read_text())
  values['facts']['splits']['validation']['bytes'] *= 2
  (folder / 'facts.json').write_text(json.dumps(values))
  assert again().facts == facts


def test_the_same_bytes_under_another_time_are_not_read_again(copied, monkeypatch):
  again, folder, right = copied
  assert content(again()) == right
  monkeypatch.setattr(store.hashlib, 'file_digest', None)            # would fail if it were used
  assert again().facts == right[0]


def test_what_cannot_be_made_again_is_one_line(copied, tmp_path):
  _, folder, _ = copied
  (folder / 'train.index.npy').write_bytes(b'')

  def gone(unfinished):
    raise errors.UserError('the text is gone')
  with pytest.raises(errors.UserError, match='train.index.npy: has 0 bytes.*made again: the text is gone'):
    store.kept(folder, gone)
  assert folder.is_dir()                                             # nothing is lost by trying


def test_records_of_large_files_are_checked_as_they_are_read(copied, monkeypatch):
  again, folder, _ = copied
  monkeypatch.setattr(store, 'WHOLE', 1000)
  file = folder / 'train.array_record'
  assert os.path.getsize(file) > 1000
  damaged = bytearray(file.read_bytes())
  found = again()
  for at in range(65600, 65700):                                     # inside the first chunk
    damaged[at] ^= 255
  file.write_bytes(damaged)
  with pytest.raises(errors.Damaged, match='train.array_record'):
    content(cache.Cache(folder, vocab.Bytes(), found.facts))


def test_keys_are_those_of_caches_without_a_seal(made):
  """Checkpoints of before hold them: a change would refuse to continue every run."""
  text, found = made
  task = tasks.get('text', [text])
  assert found.key == cache.digest(1, 'text', task.fingerprint, 'bytes')
  assert found.path.name == f'text-{found.key}-v2'


def test_vocabularies_are_checked(tmp_path, capfd):
  (tmp_path / 'a.txt').write_text('router expert token gate load drop noise span sentinel\n' * 300)
  task = tasks.get('text', [tmp_path / 'a.txt'])
  open_again = lambda: cache.vocabulary_of('train:290', [task], 0, tmp_path / 'c')
  first = open_again()
  model = pathlib.Path(first.path).read_bytes()
  pathlib.Path(first.path).write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
  assert open_again().digest == first.digest
  assert 'pieces.model' in capfd.readouterr().err
