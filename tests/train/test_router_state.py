"""Routers with state across steps in the real trainer: one update a step, resumed bit for bit."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from stmoe.analysis import figures
from stmoe.core import bias as bias_lib
from stmoe.runs import read as runs
from stmoe.train import loop
from tests.train import test_resume
from tests.train import test_step
from tests.train import tiny_run

RATE, STEPS = 0.01, 6
BIAS, ALPHA = 'inner.router.bias', 'router.alpha'
EXPERTS = dict(name='glu', d_ff=8)
BLOCKS = dict(
    d=dict(layer='dense', d_ff=32),
    m=dict(layer='shared', d_ff=8, inner=dict(
        name='moe', executor='einsum', group_size=None, experts=EXPERTS,
        router=dict(name='loss_free_balancing', num_experts=4, k=2, rate=RATE))),
    s=dict(layer='moe', executor='einsum', group_size=None, experts=EXPERTS,
           router=dict(name='skywork', num_experts=4, capacity_factor=(1.0, 1.0), min_capacity=1)))
CHANGED = {'blocks': BLOCKS, 'model.layers': (('ms', 1),), 'model.remat': 'full',
           'losses': dict(adaptive_balance=(1.0, 'sum')), 'train.microbatches': 4, 'train.steps': STEPS,
           'train.log_every': 2, 'train.stats_every': 1, 'eval.every': 2, 'checkpoint.every': 2}


def config(corpus, **changed):
  return tiny_run.config(corpus, **CHANGED | changed)


def train(cfg, path):
  return loop.train(cfg, path, devices=jax.devices()[:1])


@pytest.fixture(scope='module')
def finished(corpus, tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  assert train(config(corpus), path) == 0
  return path


@pytest.mark.slow
def test_losses_without_a_coefficient_are_said_once(finished):
  lines = (finished / 'log.txt').read_text().splitlines()
  [line] = [line for line in lines if 'have no coefficient' in line]
  assert ': balance' in line and '--config.losses.balance=0.01' in line and 'adaptive' not in line


def test_a_bias_moves_once_a_step_by_the_load_of_the_whole_batch(finished):
  """Though there are four microbatches, whose forwards are computed twice, and evaluations in between."""
  run = runs.read(finished)
  steps, bias = run.states['decoder_00'][BIAS]
  assert steps.tolist() == list(range(1, STEPS + 1)) and bias.shape == (STEPS, 4)
  expected = np.zeros(4, np.float32)
  for load, found in zip(run.loads['decoder_00'][1], bias):
    assert load.sum() == 2 * 8 * 32                                  # k x rows x tokens
    expected = np.asarray(bias_lib.update(expected, load, RATE))
    np.testing.assert_array_equal(found, expected)
  assert np.abs(bias).max() >= RATE
  # The metrics are those of the forward, before the update; alpha decays towards xi * drop rate < alpha_max.
  steps, alpha = run.states['decoder_01'][ALPHA]
  _, logged = run.series('moe/decoder_01/alpha')
  np.testing.assert_allclose(logged, alpha[[0, 2, 4]], rtol=1e-6)
  _, drop = run.series('moe/decoder_01/overflow_frac')
  np.testing.assert_allclose(alpha[1], 0.99 * alpha[0] + 0.01 * min(0.2 * drop[0], 0.01), rtol=1e-5)
  _, vio = run.series('moe/decoder_00/max_vio')
  load = run.loads['decoder_00'][1][1::2]
  np.testing.assert_allclose(vio, load.max(1) / load.mean(1) - 1, rtol=1e-5)
  assert run.last('eval/max_vio') > 0


@pytest.mark.slow
def test_a_killed_run_continues_with_its_routers_state(corpus, finished, tmp_path, monkeypatch):
  advance = loop.Loop.advance

  def advance_or_die(self):
    advance(self)
    if self.step == 3:                                               # one step after the checkpoint
      raise SystemExit
  monkeypatch.setattr(loop.Loop, 'advance', advance_or_die)
  with pytest.raises(SystemExit):
    train(config(corpus), tmp_path)
  monkeypatch.undo()
  assert train(config(corpus), tmp_path) == 0
  assert 'checkpoint of step 2' in (tmp_path / 'log.txt').read_text()
  assert test_resume.arrays(tmp_path, STEPS) == test_resume.arrays(finished, STEPS)
  assert test_resume.lines(tmp_path) == test_resume.lines(finished)
  name = pathlib.Path('router_stats') / f'{STEPS}.npz'
  mine, theirs = np.load(tmp_path / name), np.load(finished / name)
  assert set(mine.files) == {'moe_load', 'layers', f'state/decoder_00/{BIAS}', f'state/decoder_01/{ALPHA}'}
  for key in mine.files:
    np.testing.assert_array_equal(mine[key], theirs[key])


def test_figures_of_the_state(finished):
  made = figures.draw(runs.read(finished))
  bias, vio = made['selection_bias'].axes
  assert [len(line.get_xdata()) for line in bias.get_lines()] == [STEPS] * 4 + [2]   # and a line at 0
  assert [len(line.get_xdata()) for line in vio.get_lines()] == [3, 3]           # logged, evaluated
  alpha, over = (ax.get_lines()[0].get_ydata() for ax in made['adaptive_coefficients'].axes)
  assert len(alpha) == 3 and 0 < alpha[-1] < 0.01 and 0 < over[-1] < 100
  assert set(made) <= set(figures.captions())
  assert not {'selection_bias', 'adaptive_coefficients'} & set(
      figures.draw(dataclasses.replace(runs.read(finished), states={}, lines=[])))


@pytest.mark.slow
@pytest.mark.parametrize('layers, scan_layers', [((('ms', 1),), True), ((('ms', 2),), False)], ids=str)
def test_one_update_per_step_without_a_scan_too(tmp_path, layers, scan_layers):
  batches = [test_step.batch(seed=seed) for seed in range(3)]
  cfg = config(tmp_path, **{'model.scan_layers': scan_layers, 'model.layers': layers})
  state, reports = test_step.run(cfg, batches)
  segment = state['router_state']['decoder']['segments'][0]
  for number in range(layers[0][1]):
    bias = np.zeros(4, np.float32)
    for report, batch in zip(reports, batches):
      load = report['load'][f'decoder_{2 * number:02d}']
      assert load.sum() == 2 * batch['decoder_segment_ids'].sum()
      bias = bias_lib.update(bias, load, RATE)
    unit = segment if scan_layers else segment[number]
    np.testing.assert_array_equal(np.squeeze(unit['blocks'][0]['layer']['inner']['router']['bias']), bias)
