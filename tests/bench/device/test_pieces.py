"""The pieces of the kit: their order, and a dry run of each, from programs to the page."""

import types

import pytest

from stmoe.analysis import flops
from stmoe.bench.device import measured
from stmoe.bench.device import models
from stmoe.bench.device import pending
from stmoe.bench.device import readme
from stmoe.bench.device import worker
from stmoe.bench.device.pieces import layers
from stmoe.bench.device.pieces import sweep


def test_pieces_come_in_order_of_worth():
  order = list(dict.fromkeys(pending.piece(one.name) for one in pending.of()))
  assert order == ['tests', 'training', 'layers', 'products', 'decoding', 'tuning', 'sweep']
  names = [one.name for one in pending.of()]
  assert len(set(names)) == len(names)


def dry(names, tmp_path):
  """Does the dry run's jobs of these pieces in this process; returns what was measured."""
  found = measured.Measured(tmp_path)
  found.on(worker.machine())
  for job in pending.of(dry=True):
    if pending.piece(job.name) in names:
      told = []
      worker.work(job, told.append, lambda: True, threads=2)
      assert told[-1]['state'] == 'done', told
      found.add(job.name, 'done', told[-1]['seconds'], 'now', told[-1]['rows'])
  assert {pending.piece(name) for name in found.records} == set(names)
  return measured.Measured(tmp_path)


def test_dry_run_of_what_compiles_fast(tmp_path, monkeypatch):
  """From programs to the page, on tiny shapes; the slow form has all of it."""
  monkeypatch.setattr(layers, 'EXECUTORS', ('gather',))
  found = dry(('layers', 'products'), tmp_path)
  first, lost = found.records['layers S3']['rows']
  assert first['train']['ratio'] > 0 and first['drop_rate'] < 0.5 and 'error' in lost      # no PyTorch here
  text = readme.text(found)
  assert '| S3 | gather | 1.25 |' in text and '| tiny | combine |' in text


@pytest.mark.slow
def test_dry_run_of_the_rest(tmp_path):
  found = dry(('training', 'layers', 'decoding'), tmp_path)
  [row] = found.records['training tiny']['rows']
  assert row['sparse']['tokens_per_s'] > 0 and row['dense']['peak_gb'] > 0 and row['ratio'] > 0
  text = readme.text(found)
  for cells in ('| tiny | 1 |', '| S3 | pallas | dropless | 0.0% |', '| 1 | 2 |'):
    assert cells in text


@pytest.mark.slow
def test_twins_have_equal_flops_and_published_sizes():
  sizes = {'Switch-Base': 7.4e9, 'OLMoE-1B-7B': 6.92e9, 'DeepSeekMoE-16B': 16.4e9}
  for name, pair in models.pairs(dry=False).items():
    sparse, dense = pair.sparse(pair.layers), pair.dense(pair.layers)
    work = [flops.active_per_token(c)['train'] for c in (sparse, dense)]
    assert 1 <= work[0] / work[1] < 1.01, name                       # the router's products
    assert flops.parameters(sparse)['total'] == pytest.approx(sizes[name], rel=0.01)
    one, two = (models.cut(pair, room) for room in (None, 80e9))
    assert one == pair.least < two <= pair.layers


def test_of_a_sweep_that_failed_the_runs_stay_that_are_done(monkeypatch, tmp_path):
  for name in ('dense-1', 'dense-2', 'top2-1'):
    (tmp_path / name).mkdir()
  (tmp_path / 'dense-2' / 'DONE').write_text('{"step": 3}')
  monkeypatch.setattr(sweep.runs, 'read', lambda path: types.SimpleNamespace(last=len))
  with pytest.raises(pending.Failed, match='ended with 1: why') as failed:
    sweep.read(tmp_path, 'dense', 1, 'text\nwhy\n\n')
  assert [row['run'] for row in failed.value.rows] == ['dense-2']
