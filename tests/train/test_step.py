"""The jitted step of a sparse language model: microbatches, devices, non-finite steps, counters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe.train import check
from stmoe.train import state as states
from stmoe.train import step as steps
from tests.train import tiny_run


def config(tmp_path, **changed):
  # Without jitter: microbatches draw their own noise.
  return tiny_run.config(tmp_path, **{'blocks.m.router.jitter': 0.0} | changed)


def batch(rows=8, length=32, seed=0):
  """Returns a batch whose rows end in padding of very different length."""
  rng = np.random.default_rng(seed)
  targets = rng.integers(3, 259, (rows, length)).astype(np.int32)
  real = np.arange(length) < rng.integers(4, length + 1, (rows, 1))
  targets = np.where(real, targets, 0)
  inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
  positions = np.where(real, np.arange(length), 0)
  parts = dict(target_tokens=targets, input_tokens=inputs, loss_weights=real, segment_ids=real,
               positions=positions)
  return {f'decoder_{name}': x.astype(np.int32) for name, x in parts.items()}


def run(cfg, batches, devices=1):
  """Returns (state, reports) after one step per batch on so many devices, as numpy."""
  mesh = states.make_mesh(cfg.mesh, jax.devices()[:devices])
  with jax.set_mesh(mesh):
    plan = states.blueprint(cfg, mesh)
    state, step = states.init(cfg, plan), steps.make(cfg, plan)
    reports = []
    for b in batches:
      state, report = step(state, check.place(b, mesh))
      reports.append(jax.device_get(report))
  return jax.device_get({part: value for part, value in state.items() if part != 'key'}), reports


def assert_close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return run(config(tmp_path_factory.mktemp('x')), [batch(seed=s) for s in range(3)])


@pytest.mark.parametrize('devices, changed', [
    pytest.param(1, {'train.microbatches': 4}, marks=pytest.mark.slow),
    pytest.param(8, {}, marks=pytest.mark.slow),
    (8, {'mesh.expert': 2, 'mesh.model': 2, 'train.microbatches': 2})], ids=str)
def test_microbatches_and_devices_change_nothing(whole, tmp_path, devices, changed):
  state, reports = run(config(tmp_path, **changed), [batch(seed=s) for s in range(3)], devices)
  names = ('loss/ce', 'loss/total', 'loss/aux_balance', 'loss/router_z', 'grad_norm', 'load',
           *(name for name in whole[1][0] if name.startswith('parts/')))
  for mine, theirs in zip(reports, whole[1]):
    assert_close({n: mine[n] for n in names}, {n: theirs[n] for n in names})
  # AdamW divides by the root of the second moment: round-off of tiny gradients shows a little more.
  assert_close(state['params'], whole[0]['params'], rtol=1e-3, atol=1e-4)
  assert_close(state['counts'], whole[0]['counts'])


@pytest.mark.slow
def test_microbatches_keep_groups_of_several_rows(tmp_path):
  cut = lambda n: config(tmp_path, **{'blocks.m.group_size': 64, 'train.microbatches': n})
  one, *others = [run(cut(n), [batch()], devices)[1] for devices, n in ((1, 1), (1, 4), (2, 2))]
  for reports in others:
    names = ('loss/total', 'loss/aux_balance', 'grad_norm', 'load')
    assert_close({n: reports[0][n] for n in names}, {n: one[0][n] for n in names})
    for layer, metrics in one[0]['layers'].items():
      assert_close(reports[0]['layers'][layer]['drop_frac'], metrics['drop_frac'])
      assert 0 < metrics['drop_frac'] < 1


@pytest.mark.slow
def test_microbatches_draw_their_own_noise(tmp_path):
  half = {name: np.concatenate([x[:4]] * 2) for name, x in batch().items()}
  cfg = config(tmp_path, **{'blocks.m.router.jitter': 0.5, 'train.microbatches': 2})
  noisy = run(cfg, [half])[1][0]['loss/router_z']
  alone = run(config(tmp_path, **{'blocks.m.router.jitter': 0.5, 'train.batch_size': 4}),
              [{name: x[:4] for name, x in half.items()}])[1][0]['loss/router_z']
  assert noisy != alone


def test_counters(whole):
  state, reports = whole
  real = sum(int(batch(seed=s)['decoder_loss_weights'].sum()) for s in range(3))
  assert state['counts']['tokens'].tolist() == [real, 0] and state['step'] == 3
  assert list(reports[0]['load']) == ['decoder_01']
  assert reports[0]['load']['decoder_01'].sum() == batch(seed=0)['decoder_segment_ids'].sum()
  assert 'max_load_ratio' in reports[0]['layers']['decoder_01']


def test_the_gradients_of_the_parts_are_the_whole_gradient(whole):
  norms = {name: value for name, value in whole[1][0].items() if name.endswith('/grad_norm')}
  assert {name.split('/')[1] for name in norms} == {'router', 'expert', 'norm', 'attention', 'ffn', 'embed'}
  np.testing.assert_allclose(sum(norm**2 for norm in norms.values()), whole[1][0]['grad_norm']**2, rtol=1e-5)


def moved(before, after, part):
  """The norm of what a step added to the part `part` of the path, over the norm of the part before."""
  leaves = lambda tree: [x.ravel() for path, x in jax.tree.leaves_with_path(tree)
                         if part in [getattr(key, 'key', None) for key in path]]
  old, new = (np.concatenate(leaves(tree)) for tree in (before, after))
  return np.linalg.norm(new - old) / np.linalg.norm(old)


def test_token_counter_carries_into_the_high_word():
  counts = dict(tokens=jnp.array([2**32 - 3, 1], jnp.uint32), skipped=jnp.int32(0), bad=jnp.int32(0))
  new = steps.count(counts, jnp.ones((2, 4)), jnp.bool_(True))
  assert new['tokens'].tolist() == [5, 2]


def test_a_step_that_is_not_finite_changes_nothing_but_its_counters(tmp_path):
  cfg = config(tmp_path, **{'train.log_every': 1})
  mesh = states.make_mesh(cfg.mesh, jax.devices()[:1])
  with jax.set_mesh(mesh):
    plan = states.blueprint(cfg, mesh)
    state, step = states.init(cfg, plan), steps.make(cfg, plan)
    watched = steps.Watched(step, plan)
    b = check.place(batch(), mesh)
    begun = jax.device_get(state['params'])
    state, report = watched(state, b, True)
    for part, name in dict(router='router', expert='experts', embed='embed', attention='attention').items():
      ratio = moved(begun, jax.device_get(state['params']), name)
      np.testing.assert_allclose(report[f'parts/{part}/update_ratio'], ratio, rtol=1e-4)
    embedding = state['params']['embed']
    name = next(iter(embedding))
    good = embedding[name]
    embedding[name] = good.at[0].set(jnp.inf)
    before = jax.device_get({k: state[k] for k in ('params', 'opt_state', 'router_state')})
    state, report = watched(state, b, True)
    assert not np.isfinite(report['loss/total']) or not np.isfinite(report['grad_norm'])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get({k: state[k] for k in before}), before)
    assert report['parts/router/update_ratio'] == 0
    assert (int(state['step']), int(state['counts']['skipped']), int(state['counts']['bad'])) == (2, 1, 1)
    state, _ = step(state, b)
    assert (int(state['counts']['skipped']), int(state['counts']['bad'])) == (2, 2)
    state['params']['embed'][name] = state['params']['embed'][name].at[0].set(0.0)
    state, report = step(state, b)
    assert (int(state['counts']['skipped']), int(state['counts']['bad'])) == (2, 0)
    assert np.isfinite(report['loss/total'])


def test_a_finite_loss_does_not_make_a_step_good(tmp_path, monkeypatch):
  cfg = config(tmp_path)
  mesh = states.make_mesh(cfg.mesh, jax.devices()[:1])
  found = steps.gradients

  def broken(cfg, plan, state, *rest):
    """Gradients with a NaN at step 0, and at step 1 so large that only their norm is not finite."""
    grads, report, aux = found(cfg, plan, state, *rest)
    once = lambda x: jnp.where(state['step'] == 0, x.at[(0,) * x.ndim].set(jnp.nan), x)
    return jax.tree.map(lambda x: once(x * jnp.where(state['step'] == 1, 1e25, 1.0)), grads), report, aux
  monkeypatch.setattr(steps, 'gradients', broken)
  with jax.set_mesh(mesh):
    plan = states.blueprint(cfg, mesh)
    state, step, b = states.init(cfg, plan), steps.make(cfg, plan), check.place(batch(), mesh)
    before = jax.device_get({part: state[part] for part in ('params', 'opt_state')})
    for bad in (1, 2):
      state, report = step(state, b)
      assert np.isfinite(report['loss/total']) and not np.isfinite(report['grad_norm'])
      assert int(report['skipped']) == bad
      jax.tree.map(np.testing.assert_array_equal, jax.device_get({k: state[k] for k in before}), before)


def test_split_moves_no_row_to_another_device():
  mesh = axes.make_mesh(data=4, expert=2)
  with jax.set_mesh(mesh):
    rows = check.place(dict(x=np.arange(32)[:, None]), mesh)['x']
    home = {int(row): shard.device for shard in rows.addressable_shards for row in np.ravel(shard.data)}
    parts = jax.jit(lambda x: steps.split(dict(x=x), 2)['x'])(rows)     # [2, 16, 1]
  assert sorted(np.asarray(parts).ravel().tolist()) == list(range(32))
  for shard in parts.addressable_shards:
    for number in np.asarray(shard.data).ravel():
      assert home[int(number)] == shard.device


def test_state_is_born_sharded(tmp_path):
  cfg = config(tmp_path, **{'mesh.expert': 2, 'mesh.model': 2, 'optimizer': dict(name='adafactor')})
  mesh = states.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    plan = states.blueprint(cfg, mesh)
    state = states.init(cfg, plan)
  same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim), state, plan.shapes)
  assert all(jax.tree.leaves(same))
  banks = lambda tree: [x for path, x in jax.tree.leaves_with_path(tree)
                        if 'experts' in jax.tree_util.keystr(path)]
  experts = banks(state['params'])
  assert len(experts) == 2
  for x in experts:                                                  # the experts and their width are split
    assert x.addressable_shards[0].data.size == x.size // 4
  assert all(x.addressable_shards[0].data.size < x.size for x in banks(state['opt_state']['slots']))


def test_bfloat16_keeps_parameters_in_float32_and_stays_close(whole, tmp_path):
  state, reports = run(config(tmp_path, **{'model.dtype': 'bfloat16'}), [batch(seed=s) for s in range(3)])
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(state['params']))
  np.testing.assert_allclose(reports[2]['loss/ce'], whole[1][2]['loss/ce'], rtol=0.02)
  assert reports[2]['loss/ce'] != whole[1][2]['loss/ce']


@pytest.mark.parametrize('devices, changed, message', [
    (8, {'mesh.expert': 8, 'blocks.m.router.num_experts': 6},
     'mesh.expert=8: experts .*: 6 is not .* by 8; nearest: mesh.expert=2$'),
    (8, {'mesh.expert': 3}, 'does not fit 8 device.* nearest: --config.mesh.expert=2$'),
    (8, {'mesh.data': 4}, 'does not fit 8 device.* nearest: --config.mesh.data=8$'),
    (1, {'mesh.expert': 4}, 'does not fit 1 device.* nearest: --config.mesh.expert=1$'),
    (8, {'train.batch_size': 12}, 'batch_size=12 is not divisible by 1 .* x 8 devices.*nearest: 8, 16'),
    (1, {'train.microbatches': 3}, 'not divisible by 3 microbatches'),
    (1, {'blocks.m.group_size': 48}, 'group_size 48 does not divide'),
    (1, {'losses': dict(balence=(0.1, 'mean'))}, 'losses.balence .* nearest: balance'),
    (1, {'optimizer.b3': 0.1}, "no field 'b3'"),
    (1, {'schedule.peek': 0.1}, "no field 'peek'; nearest: peak"),
    (1, {'blocks.m.router.name': 'swich'}, 'nearest: switch'), (1, {'train.steps': 0}, 'train.steps=0')])
def test_mistakes_are_found_without_compiling(tmp_path, devices, changed, message):
  cfg = config(tmp_path, **changed)
  with pytest.raises(errors.UserError, match=message):
    check.counts(cfg)
    mesh = states.make_mesh(cfg.mesh, jax.devices()[:devices])
    with jax.set_mesh(mesh):
      check.batches(cfg)
      plan = states.blueprint(cfg, mesh)
      steps.make(cfg, plan)
      check.forward(cfg, plan)
