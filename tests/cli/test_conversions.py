"""Downloaded folders where experiments stand, and `stmoe conversions`, which deletes what they became."""

import json
import pathlib
import shutil

import pytest

from stmoe.derive import convert
from stmoe.derive import downloaded
from stmoe.runs import directory as rundir

CASES = pathlib.Path(__file__).resolve().parents[1] / 'data' / 'checkpoints'
CASE = CASES / 'mixtral_window_pad'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """The user's cache folder, and conversions of a few bytes."""
  def fake(source, target, say=print):
    target.mkdir(parents=True)
    (target / 'config.json').write_text('{}')
    (target / 'imported.json').write_text(json.dumps(
        dict(source=str(source), family='mixtral', copies=[], dtype='F32', dtypes={})))
  monkeypatch.setattr(convert, 'read', fake)
  monkeypatch.setattr(rundir, 'opened', lambda path: rundir.records.config(path))
  monkeypatch.setenv('STMOE_CACHE_DIR', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def converted(tmp_path, name):
  folder = tmp_path / name
  folder.mkdir()
  for file in ('config.json', 'model.safetensors'):
    shutil.copy2(CASE / file, folder / file)
  return folder, downloaded.resolved(folder, lambda line: None)


def test_conversions_are_listed_and_those_that_nobody_reads_are_deleted(tmp_path, command, mistake):
  assert command('conversions')[:2] == (0, '0 conversions, 0 bytes\n')
  (first, kept), (second, lost) = (converted(tmp_path, name) for name in ('One-1B', 'Two-2B'))
  (second / 'generation_config.json').write_text('{"eos_token_id": 7}')           # is another model now
  code, out, _ = command('conversions')
  lines = {line.partition('  ')[0]: line for line in out.splitlines()}
  assert code == 0 and lines[str(lost)].endswith(f'of {second}, old')
  assert lines[str(kept)].endswith(f'0 days, of {first}') and out.splitlines()[-1].startswith('2 conversions')
  assert 'nearest: One-1B' in mistake('conversions', '--delete', 'One-1')
  code, out, _ = command('conversions', '--delete', 'old')
  assert code == 0 and '1 conversions deleted' in out and not lost.exists() and kept.exists()
  assert downloaded.resolved(first, lambda line: None) == kept
  assert '1 conversions deleted' in command('conversions', '--delete', 'One-1B')[1] and not kept.exists()
  assert list((tmp_path / 'cache' / 'imported').iterdir()) == [tmp_path / 'cache' / 'imported' / 'owner.json']


def test_a_folder_is_compared_by_its_headers(cache, command, mistake, tmp_path):
  other = shutil.copytree(CASE, tmp_path / 'other')
  hf = json.loads((other / 'config.json').read_text())
  (other / 'config.json').write_text(json.dumps(hf | dict(sliding_window=9)))
  code, out, _ = command('diff', CASE, other)
  assert code == 0 and out.splitlines()[1].split() == ['model.window', str(hf['sliding_window']), '9']
  assert not cache.exists()
  assert f'nearest: stmoe report {CASE} --text FILE' in mistake('plot', CASE)
  (other / 'config.json').write_text(json.dumps(hf | dict(model_type='mamba')))
  assert "model_type='mamba' is not supported" in mistake('diff', other, CASE)
  assert "model_type='mamba' is not supported" in mistake('compile', other, '--topology', 'cpu:1')


def test_a_checkpoint_of_t5x_is_a_downloaded_folder(tmp_path, command):
  folder = tmp_path / 't5x'
  array = folder / 'target.token_embedder.embedding'
  array.mkdir(parents=True)
  (array / '.zarray').write_text('{}')
  (array / '0.0').write_bytes(bytes(100))
  assert downloaded.found(folder) and not downloaded.found(array)
  made = downloaded.resolved(folder, lambda line: None)
  assert downloaded.resolved(folder, lambda line: None) == made
  (array / '0.0').write_bytes(bytes(99) + b'1')
  assert downloaded.resolved(folder, lambda line: None) != made
