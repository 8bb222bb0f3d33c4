"""A run that is killed and continued writes what an undisturbed one writes, bit for bit."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import xla
from tests.train import tiny_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
KILLED = -9


@pytest.fixture(scope='module')
def undisturbed(corpus, tmp_path_factory):
  path = tmp_path_factory.mktemp('undisturbed')
  done = run(corpus, path)
  assert done.returncode == 0, done.stderr
  return path, done


def run(corpus, path, *arguments):
  """Returns the finished process of a training on one device."""
  environment = dict(os.environ, PYTHONPATH=str(ROOT), XLA_FLAGS=xla.flags(devices=1))
  return subprocess.run([sys.executable, tiny_run.__file__, str(corpus), str(path), *arguments],
                        env=environment, capture_output=True, text=True, timeout=300, check=False)


def lines(path):
  """Returns metrics.jsonl without the times, which no two runs share."""
  found = [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if k != 'time'} for line in found]


def arrays(path, step):
  """Returns dict path -> [shape, checksum], and the data position, of a checkpoint."""
  folder = path / 'checkpoints' / str(step)
  meta, data = (json.loads((folder / item / 'metadata').read_text()) for item in ('meta', 'data'))
  return meta['arrays'], data


def assert_same(path, reference):
  assert [line['step'] for line in lines(path)] == [2, 4, 6, 8, 10, 12]
  assert lines(path) == lines(reference)
  assert arrays(path, 12) == arrays(reference, 12)
  for stats in ('6.npz', '12.npz'):
    mine, theirs = (np.load(p / 'router_stats' / stats)['moe_load'] for p in (path, reference))
    np.testing.assert_array_equal(mine, theirs)
  mine, theirs = (json.loads((p / 'DONE').read_text()) for p in (path, reference))
  assert {**mine, 'time': 0} == {**theirs, 'time': 0}


def test_a_kill_while_a_checkpoint_is_written_changes_nothing(corpus, undisturbed, tmp_path):
  assert run(corpus, tmp_path, '--kill', 'write:8').returncode == KILLED
  done = run(corpus, tmp_path)
  assert done.returncode == 0 and 'checkpoint of step 4' in done.stderr, done.stderr
  assert_same(tmp_path, undisturbed[0])


@pytest.mark.slow
def test_three_kills_in_a_row_change_nothing(corpus, undisturbed, tmp_path):
  reference, _ = undisturbed
  # Before the first checkpoint; between two, with metrics of steps that are lost; while one is written.
  for place, restored, saved in (('step:3', None, []), ('step:7', None, [4]), ('write:8', 4, [4])):
    killed = run(corpus, tmp_path, '--kill', place)
    assert killed.returncode == KILLED, killed.stderr
    assert (f'checkpoint of step {restored}' in killed.stderr) == (restored is not None)
    assert not (tmp_path / 'DONE').exists()
    assert [int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()] == saved
  assert any('8.orbax-checkpoint-tmp' in p.name for p in (tmp_path / 'checkpoints').iterdir())
  done = run(corpus, tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'checkpoint of step 4' in done.stderr
  assert_same(tmp_path, reference)
  assert not any('tmp' in p.name for p in (tmp_path / 'checkpoints').iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('place', ['step:3', 'step:9', 'write:4', 'write:8', 'write:12'])
@pytest.mark.parametrize('fields', [(), ('checkpoint.async_save=False',), ('train.microbatches=2',)], ids=str)
def test_one_kill_changes_nothing(corpus, tmp_path, place, fields):
  reference, path = tmp_path / 'reference', tmp_path / 'killed'
  assert run(corpus, reference, *fields).returncode == 0
  assert run(corpus, path, *fields, '--kill', place).returncode == KILLED
  assert run(corpus, path, *fields).returncode == 0
  assert_same(path, reference)


def test_training_imports_no_tensorflow_and_a_finished_run_says_so(corpus, undisturbed):
  path, done = undisturbed
  assert done.stdout.splitlines()[-1] == 'False'
  again = run(corpus, path)
  assert again.returncode == 0 and 'is finished: 12 steps' in again.stdout
  assert 'compiling' not in again.stderr


@pytest.mark.slow
def test_a_streamed_corpus_goes_on_within_a_window_and_its_shards_are_the_same(corpus, tmp_path):
  fields = 'data.documents="line"', 'data.shard_mb=0.001', 'checkpoint.keep=9'
  for cache in ('stream', 'shards'):
    assert run(corpus, tmp_path / cache, *fields, f'data.cache="{cache}"').returncode == 0
  again = *fields, 'data.cache="stream"'
  assert run(corpus, tmp_path / 'killed', *again, '--kill', 'step:11').returncode == KILLED
  done = run(corpus, tmp_path / 'killed', *again)
  assert done.returncode == 0 and 'checkpoint of step 8' in done.stderr, done.stderr
  for other in ('killed', 'shards'):
    assert_same(tmp_path / other, tmp_path / 'stream')
  marks = [arrays(tmp_path / 'stream', step)[1]['mark'] for step in (4, 8, 12)]
  assert [mark[1:3] for mark in marks] == [[0, 0], [0, 1], [0, 2]]   # epochs and windows
