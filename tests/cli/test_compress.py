"""`stmoe compress`: a surgery is a file, its fields are in the text that names it; mistakes are one line."""

import jax
import pytest

import stmoe.surgery
from stmoe import lookup
from stmoe.runs import directory as rundir
from stmoe.runs import records
from tests.derive import drawn
from tests.train import tiny_run

# Half of every expert's output, whatever the model is.
PROBE = '''"""Quieter experts."""
from stmoe import ranges
from stmoe.surgery import sparse


def operate(params, config, calibration, *, keep: ranges.PartOf1 = 0.5, only: ranges.Text | None = None):
  """Returns (params, changes)."""
  made = {}
  for layer in sparse.found(config):
    if only in (None, layer.name):
      made[(*layer.path, 'experts', 'wo')] = keep * layer.owned(params)['wo',]
  return sparse.replaced(params, made), {}
'''


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  corpus = tiny_run.write_corpus(tmp_path_factory.mktemp('corpus'))
  return drawn.write(tmp_path_factory.mktemp('start') / 'run', tiny_run.config(corpus), 4, jax.devices()[:1])


def test_a_surgery_is_a_file(command, start, tmp_path, monkeypatch, one_device):
  (tmp_path / 'more').mkdir()
  (tmp_path / 'more' / 'quiet.py').write_text(PROBE)
  monkeypatch.setattr(stmoe.surgery, '__path__', [*stmoe.surgery.__path__, str(tmp_path / 'more')])
  assert 'quiet' in lookup.available('surgery') and 'layout' not in lookup.available('surgery')
  code, out, _ = command('compress', start, 'quiet:only=decoder_01,keep=0.25', '--workdir', tmp_path / 'run',
                         '--config.train.steps=20')
  assert code == 0 and 'parameters' in out
  assert rundir.load(tmp_path / 'run').train.steps == 20
  [entry] = records.ancestry(tmp_path / 'run')['lineage']
  assert entry['method'] == 'quiet' and entry['options'] == dict(keep=0.25, only='decoder_01')
  out = command('show', tmp_path / 'run')[1]
  assert 'made by quiet (keep=0.25, only=decoder_01) of' in out and f'{start}, step 4' in out


@pytest.mark.parametrize('words, said', [
    (['prun'], ["no surgery is called 'prun'", 'nearest: prune']),
    (['upcycle'], ["no surgery is called 'upcycle'", 'there are: ', 'merge, ']),
    (['prune:by=luck'], ["by='luck'", 'usage, reap, magnitude, random']),
    (['ea_quant:bits=9'], ['bits=9']),
    (['merge:keep=2'], ['keep=2.0', 'at most 1']),
    (['prune', '--batches', '0'], ['--batches 0']),
    (['prune', '--config.train.stps=3'], ['config.train.stps does not exist', 'train.steps'])])
def test_mistakes(mistake, start, tmp_path, words, said):
  line = mistake('compress', start, *words, '--workdir', tmp_path / 'run')
  assert all(word in line for word in said), line
  assert not (tmp_path / 'run').exists()
