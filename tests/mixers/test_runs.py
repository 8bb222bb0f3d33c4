"""Runs of mixtures for several tasks: microbatches and devices change nothing, a run goes on bit for bit."""

import json

import jax
import numpy as np
import pytest

from stmoe import experiment
from stmoe.data import batches as pipeline
from stmoe.train import check
from stmoe.train import evaluate
from stmoe.train import loop
from stmoe.train import state as states
from stmoe.train import step as steps


def config(tmp_path, arg, *changed):
  """The smoke of an experiment, with widths that devices divide and groups of rows that are normalised."""
  cfg, _ = experiment.load(f'home/many_tasks:smoke,{arg}', [
      f'--config.data.cache_dir={tmp_path}', '--config.train.steps=4', '--config.eval.every=4',
      '--config.data.num_rows=96', '--config.data.num_held_out=20', '--config.checkpoint.every=2',
      '--config.data.num_features=8', '--config.model.num_features=8', *changed])
  return cfg


# A norm over two rows alike divides by nearly nothing: one ulp of the parameters moves gradients by 1e-3.
HOME = ('--config.model.mixer.group_size=4', '--config.model.mixer.meta=2', '--config.model.mixer.specific=1')


def computed(cfg, devices):
  """(gradients, report, metrics of evaluation, state of the norms after a step) of the first batch."""
  with states.on_mesh(cfg.mesh, jax.devices()[:devices]) as mesh:
    check.batches(cfg)
    plan = states.blueprint(cfg, mesh)
    check.forward(cfg, plan)
    state, opened = states.init(cfg, plan), pipeline.source(cfg)
    data = pipeline.train_iterator(cfg, opened=opened)
    batch = check.place(next(data), mesh)
    data.close()

    @jax.jit
    def work(state, batch):
      grads, report, aux = steps.gradients(cfg, plan, state, batch, cfg.train.microbatches)
      return grads, report, steps.committed(plan, state['params'], state['router_state'], aux)
    values = evaluate.run(cfg, plan, evaluate.make(plan), state, opened.info(), opened=opened)
    return *jax.device_get(work(state, batch)), values


def assert_same(one, other):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), one, other)


@pytest.mark.slow
@pytest.mark.parametrize('arg, changed', [
    ('yes', HOME), ('method=ple', ('--config.model.mixer.specific=1',))], ids=str)
def test_microbatches_and_devices_change_nothing(tmp_path, arg, changed):
  spread = '--config.train.microbatches=2', '--config.mesh.expert=2', '--config.mesh.model=2'
  whole = computed(config(tmp_path, arg, *changed), 1)
  parts = computed(config(tmp_path, arg, *changed, *spread), 8)
  assert whole[2] or 'yes' not in arg
  assert ('eval/auc_1' in whole[3]) == ('yes' in arg)
  assert_same(whole, parts)


# Experiments on users and tasks -> what is changed of their smoke.
RUNS = {
    'home/many_tasks:smoke,yes': ('--config.data.num_rows=96', '--config.data.num_held_out=20'),
    'aw_moe/sessions:smoke,loss=binary': (),
    'customization/digits:smoke': ('--config.data.num_held_out=40',),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', RUNS)
def test_a_run_goes_on_bit_for_bit(tmp_path, name):
  one = jax.devices()[:1]

  def train(folder, total):
    cfg, _ = experiment.load(name, [
        f'--config.data.cache_dir={tmp_path}', f'--config.train.steps={total}', '--config.eval.every=4',
        '--config.checkpoint.every=2', '--config.train.log_every=2', *RUNS[name]])
    assert loop.train(cfg, tmp_path / folder, devices=one) == 0
    return json.loads((tmp_path / folder / 'DONE').read_text())
  whole = train('whole', 4)
  assert train('parts', 2) and (parts := train('parts', 4))
  assert all(whole[key] == parts[key] for key in whole if key != 'time')
  assert 'eval/accuracy' in whole and ('eval/auc' in whole) == ('customization' not in name)


@pytest.mark.slow
def test_stages_of_customisation_leave_the_others_alone(tmp_path):
  """Every two steps another part trains: GE, LE, then the gate."""
  every = [f'--config.groups.{part}.every=2' for part in ('generic', 'local', 'gate')]
  cfg, _ = experiment.load('customization/digits:smoke', [f'--config.data.cache_dir={tmp_path}', *every])
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    plan = states.blueprint(cfg, mesh)
    state, do_step = states.init(cfg, plan), steps.make(cfg, plan)
    data, seen = pipeline.train_iterator(cfg), []
    for _ in range(6):
      seen.append(jax.device_get(state['params']))
      state, _ = do_step(state, check.place(next(data), mesh))
    data.close()
    seen.append(jax.device_get(state['params']))
  moved = [{part for part in one if any(
      (a != b).any() for a, b in zip(jax.tree.leaves(one[part]), jax.tree.leaves(other[part])))}
           for one, other in zip(seen, seen[1:])]
  assert moved == [{'trunk', 'generic'}] * 2 + [{'local'}] * 2 + [{'gate'}] * 2
