"""A run on trajectories: contexts and model in turns, the gate as state, resumed bit for bit, any layout."""

import json

import jax
import numpy as np
import pytest

from stmoe import axes
from stmoe import experiment
from stmoe.analysis import figures
from stmoe.data import batches as pipeline
from stmoe.runs import read
from stmoe.train import check
from stmoe.train import loop
from stmoe.train import state as states
from stmoe.train import step as steps

pytestmark = pytest.mark.slow            # a solver's gradient takes many seconds to compile
SMOKE = ['train.steps=8', 'train.log_every=4', 'train.stats_every=4', 'eval.every=4', 'checkpoint.every=4',
         'model.context_scale=0.1']


def config(*overrides):
  cfg = experiment.load('mixer/families:smoke', [*SMOKE, *overrides])[0]
  check.counts(cfg)
  return cfg


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp('run') / 'run'
  assert loop.train(config(), path, 'mixer', jax.devices()[:1]) == 0
  return path


def lines(path):
  found = [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
  return [{name: value for name, value in line.items() if name != 'time'} for line in found]


def test_a_run_is_resumed_bit_for_bit(finished, tmp_path, monkeypatch):
  advance = loop.Loop.advance

  def stop(self):
    advance(self)
    if self.step == 5:
      raise KeyboardInterrupt
  monkeypatch.setattr(loop.Loop, 'advance', stop)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config(), tmp_path / 'run', 'mixer', jax.devices()[:1])
  monkeypatch.undo()
  assert loop.train(config(), tmp_path / 'run', 'mixer', jax.devices()[:1]) == 0
  assert lines(tmp_path / 'run') == lines(finished)
  assert {'eval/rand', 'eval/loss', 'loss/mse', 'grad_norm/context'} <= set(lines(finished)[-1])


def test_its_figures_are_trajectories_by_expert_and_updates_of_the_gate(finished):
  drawn = figures.draw(read.read(finished))
  assert {'trajectories_by_expert', 'gate_updates'} <= set(drawn)
  run = read.read(finished)
  steps_seen, tried = run.states['encoder_00']['router.tried']
  assert steps_seen.tolist() == [4, 8] and tried.tolist() == [4, 8]


def after(microbatches=1, mesh=None):
  """The state after three steps, on one device or on a mesh."""
  cfg = config(f'train.microbatches={microbatches}')
  mesh = mesh or axes.make_mesh(devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    plan = states.blueprint(cfg, mesh)
    state, do, data = states.init(cfg, plan), steps.make(cfg, plan), pipeline.train_iterator(cfg)
    for _ in range(3):
      state, _ = do(state, check.place(next(data), mesh))
    return jax.device_get(state)


def assert_same(got, wanted):
  for part in ('params', 'router_state'):
    for (path, a), b in zip(jax.tree.leaves_with_path(got[part]), jax.tree.leaves(wanted[part]), strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=jax.tree_util.keystr(path))


def test_microbatches_and_devices_change_nothing():
  whole = after()
  assert_same(after(microbatches=4), whole)
  assert_same(after(mesh=axes.make_mesh(data=8)), whole)
