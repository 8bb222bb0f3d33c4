"""Downloaded folders as runs: converted once, again when something changed, by one process at a time."""

import json
import os
import pathlib
import shutil
import threading

import pytest

from stmoe import errors
from stmoe import plugins
from stmoe.derive import convert
from stmoe.derive import downloaded
from stmoe.interop import tensors
from stmoe.runs import directory as rundir
from stmoe.runs import owner

CASE = pathlib.Path(__file__).resolve().parents[1] / 'data' / 'checkpoints' / 'mixtral_window_pad'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The user's cache folder."""
  monkeypatch.setenv('STMOE_CACHE_DIR', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def folder(tmp_path):
  target = tmp_path / 'downloads' / 'Tiny-1M'
  target.mkdir(parents=True)
  for name in ('config.json', 'model.safetensors'):
    shutil.copy2(CASE / name, target / name)
  (target / 'generation_config.json').write_text('{"eos_token_id": [2, 7]}')
  return target


@pytest.fixture
def read(monkeypatch):
  """What a conversion is asked for, without one: a list of the folders, and a run of a few bytes."""
  asked = []

  def fake(source, target, say=print):
    asked.append(source)
    target.mkdir(parents=True)
    (target / 'config.json').write_text('{}')
  monkeypatch.setattr(convert, 'read', fake)
  monkeypatch.setattr(rundir, 'opened', lambda path: rundir.records.config(path))
  return asked


def test_a_folder_is_converted_once_and_the_conversion_is_a_run(folder, cache):
  said = []
  first = downloaded.resolved(folder, said.append)
  assert first.name == 'Tiny-1M' and first.is_relative_to(cache) and 'converted once' in said[0]
  assert rundir.opened(first).model.end_ids == (2, 7)
  again = downloaded.resolved(folder, said.append)
  assert again == first and said[-1] == f'{folder} was converted before: {first} is read'
  assert downloaded.run_directory(str(folder), said.append) == first
  number = len(said)
  assert downloaded.resolved(first, said.append) == first and len(said) == number      # a run is itself


def test_a_conversion_that_is_damaged_is_made_again(folder):
  first = downloaded.resolved(folder, print)
  config = first / 'config.json'
  config.write_text(config.read_text().replace('"d_model": ', '"d_model": 1'))
  (first / 'routing.json').write_text('{}')
  said = []
  assert downloaded.resolved(folder, said.append) == first
  assert 'the conversion is made again' in said[0] and rundir.opened(first) is not None
  assert not (first / 'routing.json').exists()                       # it said things of the damaged one


@pytest.mark.parametrize('name', ['config.json', 'generation_config.json', 'model.safetensors'])
@pytest.mark.parametrize('at', [0.1, 0.999])
def test_other_bytes_of_the_same_size_and_time_are_another_model(folder, name, at):
  file, before = folder / name, downloaded.key(folder)
  content, times = bytearray(file.read_bytes()), file.stat()
  content[int(at * len(content))] ^= 1
  file.write_bytes(content)
  os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
  assert file.stat().st_size == times.st_size and downloaded.key(folder) != before


def test_a_new_file_or_time_is_another_model_and_a_note_is_not(folder):
  before = downloaded.key(folder)
  (folder / 'NOTES.txt').write_text('a note')
  assert downloaded.key(folder) == before
  (folder / 'tokenizer.json').write_text('{}')
  assert downloaded.key(folder) != before
  (folder / 'tokenizer.json').unlink()
  os.utime(folder / 'model.safetensors', ns=(1, 1))
  assert downloaded.key(folder) != before


def test_a_family_of_a_file_of_ones_own_is_code_that_converts(folder, tmp_path, monkeypatch):
  monkeypatch.setenv(plugins.VARIABLE, '')
  keys = [downloaded.key(folder)]
  for text in ("ARCHITECTURE = 'A'\ndef configure(hf, tied): pass\ndef describe(c): pass\n",
               "ARCHITECTURE = 'B'\ndef configure(hf, tied): pass\ndef describe(c): pass\n",
               'def score(examples, predictions): pass\n'):
    (tmp_path / 'mine.py').write_text(text)
    monkeypatch.setenv(plugins.VARIABLE, '')
    plugins.add(tmp_path / 'mine.py')
    keys.append(downloaded.key(folder))
  assert len(set(keys[:3])) == 3 and keys[3] == keys[0]


def test_a_large_file_is_told_by_blocks_of_its_whole_length(folder):
  file, size = folder / 'model.safetensors', 8 << 20
  header = (8).to_bytes(8, 'little') + b'{}      '

  def key(**changed):
    content = bytearray(header + bytes(size))
    for place in changed.values():
      content[place] = 1
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    return downloaded.key(folder)
  last = len(header) + size - 1
  middle = 40 * last // (tensors.SAMPLES - 1)
  assert len({key(), key(header=9), key(middle=middle), key(last=last)}) == 4
  assert key(between=middle + tensors.SAMPLE) == key()               # the file's time tells of these bytes


def test_two_at_once_convert_once(folder, read, cache):
  said, found = [], []
  rundir.make(cache / 'imported')
  with owner.hold(cache / 'imported'):
    both = [threading.Thread(target=lambda: found.append(downloaded.resolved(folder, said.append)))
            for _ in range(2)]
    for thread in both:
      thread.start()
    while sum('waiting for another conversion' in line for line in said) < 2:
      assert all(thread.is_alive() for thread in both)
    assert not read
  for thread in both:
    thread.join()
  assert len(read) == 1 and len(set(found)) == 1


def test_the_cache_of_huggingface_hub_names_the_repository(folder, read):
  snapshot = folder.parent / 'models--allenai--Tiny-1M' / 'snapshots' / 'f00d'
  snapshot.parent.mkdir(parents=True)
  folder.rename(snapshot)
  assert downloaded.resolved(snapshot, print).name == 'Tiny-1M'


@pytest.mark.parametrize('fields, gone, says', [
    (dict(model_type='jamba'), '', 'jamba'),
    (dict(architectures=['LlamaForSequenceClassification']), '', 'is not supported'),
    (dict(num_local_experts=None), '', 'config.json has no num_local_experts'),
    (dict(), 'model.safetensors', 'has no *.safetensors file'),
])
def test_a_bad_folder_is_one_line_and_leaves_nothing(folder, cache, fields, gone, says):
  config = folder / 'config.json'
  config.write_text(json.dumps(json.loads(config.read_text()) | fields))
  if gone:
    (folder / gone).unlink()
  with pytest.raises(errors.UserError, match=says.replace('*', '.')) as caught:
    downloaded.resolved(folder, lambda line: None)
  assert '\n' not in str(caught.value)
  assert [path.name for path in (cache / 'imported').iterdir()] == [owner.FILE]


def test_who_wants_a_run_and_no_conversion_is_told_how_to_make_one(folder):
  with pytest.raises(errors.UserError, match='has no section model; nearest: a run that stmoe convert makes'):
    rundir.load(folder)


def test_what_is_no_downloaded_folder_stays_itself(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed": 0}')
  for path in (tmp_path, tmp_path / 'none', CASE / 'config.json'):
    assert downloaded.resolved(path) == path
