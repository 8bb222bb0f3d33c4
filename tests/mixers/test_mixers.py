"""Mixtures for several tasks: HoME by hand, what equal experts give, statistics of batches, mistakes."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import router_state
from stmoe.analysis.figures import multi_gate as figure
from stmoe.runs import read as runs
from tests.analysis import synthetic

B, D, H = 6, 3, 4
HOME = dict(name='home', groups=((0, 2), (1,)), meta=2, shared=1, ranks=(2,))


def model(mixer, num_tasks=3, **fields):
  fields = dict(name='multi_task', num_features=D, num_outputs=num_tasks, d_model=H, mixer=mixer) | fields
  return lookup.recipe('model', fields)(rngs=nnx.Rngs(0))


def batch(seed=0, rows=B):
  rng = np.random.default_rng(seed)
  return dict(features=rng.normal(size=(rows, D)).astype(np.float32), weights=np.ones((rows, 3), np.float32))


@functools.partial(jax.jit, static_argnames='train')
def run(made, rows, train=True):
  return made(rows, train=train)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


sigmoid = lambda x: 1 / (1 + np.exp(-x))


def expert(level, e, v):
  """Swish(BN(v w + b)) of expert e, of the batch's own statistics."""
  y = v @ level['experts']['w'][0][e] + level['experts']['b'][0][e]
  y = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
  return y * sigmoid(y)


def gated(gate, v):
  return v * 2 * sigmoid(v @ gate['down'][0] @ gate['up'][0])


def by_hand(p, x):
  """The answers [B,3] of HOME: experts 0, 1 of group 0; 2, 3 of group 1; 4 shared. Then 0 to 2 of tasks, 3, 4
  of groups, 5 common."""
  first, second = p['mixer']['levels'][0], p['mixer']['levels'][1]
  before = p['mixer']['feature_gates']
  banks = dict(group_0=[0, 1], group_1=[2, 3], shared=[4])
  y = {e: expert(first, e, gated(before[0][bank], x)) for bank, members in banks.items() for e in members}

  def mixed(level, y, name, seen, own, v):
    z = sum(g[:, None] * y[e] for g, e in zip(softmax(v @ level['gates'][name]['w']).T, seen))
    alone = v @ level['own'][name]['w']
    alone = sigmoid(alone) if len(own) == 1 else softmax(alone)
    return z + sum(g[:, None] * y[e] for g, e in zip(alone.T, own))
  z = {name: mixed(first, y, name, [*banks[name], 4], banks[name], x) for name in ('group_0', 'group_1')}
  z['shared'] = mixed(first, y, 'shared', range(5), [4], x)
  groups, answers = [0, 1, 0], []
  for task, group in enumerate(groups):
    v = z[f'group_{group}']
    y = {task: expert(second, task, gated(before[1][f'task_{task}'], v)),
         3 + group: expert(second, 3 + group, v), 5: expert(second, 5, z['shared'])}
    o = mixed(second, y, f'task_{task}', [task, 3 + group, 5], [task], v)
    answers.append(o @ p['head'][task]['w'][0] + p['head'][task]['b'][0])
  return np.concatenate(answers, 1)


@pytest.fixture(scope='module')
def home():
  return model(HOME)


def test_home_by_hand(home):
  params = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(home, nnx.Param)))
  logits, aux = run(home, batch())
  np.testing.assert_allclose(logits, by_hand(params, batch()['features'].astype(np.float64)), atol=2e-5)
  assert list(aux) == ['level_0', 'level_0.group_0', 'level_0.group_1', 'level_0.shared',
                       'level_1', 'level_1.task_0', 'level_1.task_1', 'level_1.task_2']
  load = np.array(aux['level_1.task_1'].load)
  assert (load > 0).tolist() == [False, True, False, False, True, True]
  np.testing.assert_allclose(load[[4, 5]].sum() + load[1], aux['level_1.task_1'].load.sum())


def test_averages_of_normalisation_are_moved_once_and_padding_does_not_count(home):
  rows = batch(1)
  none = dict(features=7, weights=0)
  padded = {name: np.concatenate([x, 0 * x[:2] + none[name]]) for name, x in rows.items()}
  (logits, aux), (other, with_padding) = run(home, rows), run(home, padded)
  np.testing.assert_allclose(other[:B], logits, atol=1e-5)
  made = nnx.merge(*nnx.split(home))
  router_state.commit(made, with_padding)
  norm, found = made.mixer.levels[0].experts.norm, aux['level_0'].statistics
  np.testing.assert_allclose(norm.mean[...], 0.1 * found['norm.mean'].value, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(norm.variance[...], 0.9 + 0.1 * found['norm.variance'].value, rtol=1e-4)
  evaluated, _ = run(made, rows, train=False)                        # by the averages: a row is alone
  alone, _ = run(made, {name: x[:1] for name, x in rows.items()}, train=False)
  np.testing.assert_allclose(alone[0], evaluated[0], rtol=1e-4, atol=1e-6)


def test_groups_of_rows_are_normalised_by_themselves():
  made = model(HOME | dict(group_size=3))
  whole, _ = run(made, batch())
  parts = [run(made, {name: x[at] for name, x in batch().items()})[0] for at in (np.s_[:3], np.s_[3:])]
  np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
  with pytest.raises(errors.UserError, match='group_size=4 does not divide the 6 rows .* nearest: 3'):
    run(model(HOME | dict(group_size=4)), batch())


def test_normalised_experts_are_seldom_zero_and_a_self_gate_is_a_road_to_own_experts(home):
  """What both are for: units of other experts are 0 for half of the rows, gradients of own ones smaller."""
  plain = model(HOME | dict(normalized=False))
  zero = lambda made: [float(a.metrics['zero_share']) for key, a in run(made, batch())[1].items()
                       if '.' not in key]
  assert max(zero(home)) == 0 and min(zero(plain)) > 0.2
  without = model(HOME | dict(self_gate=False))
  same = dict(nnx.to_flat_state(nnx.state(home, nnx.Param)))
  for path, variable in nnx.to_flat_state(nnx.state(without, nnx.Param)):
    variable[...] = same[path][...]

  @jax.jit
  def slope(made):                       # of the specific expert of task 1, by this task's answer alone
    grads = jax.grad(lambda made: jnp.sum(made(batch(), train=True)[0][:, 1]))(made)
    return jnp.linalg.norm(grads.mixer.levels[1].experts.w[0][...][1])
  assert slope(home) > 1.5 * slope(without) > 0


MIXERS = dict(
    mmoe=dict(name='mmoe', num_experts=3), omoe=dict(name='mmoe', num_experts=3, gates='one'),
    top=dict(name='mmoe', num_experts=3, top=2), cgc=dict(name='ple', specific=2, shared=1, num_levels=1),
    ple=dict(name='ple', specific=1, shared=2), ml_mmoe=dict(name='ple', separate=False))


def test_every_mixer_is_here():
  assert {mixer['name'] for mixer in (HOME, *MIXERS.values())} == set(lookup.available('mixer'))


@pytest.mark.parametrize('name', MIXERS)
def test_a_mixture_of_equal_experts_is_one_expert(name):
  """Weights of a gate add up to 1."""
  made = model(MIXERS[name])
  h = batch()['features']
  for level in made.mixer.levels:
    bank = level.experts
    w, b = bank.w[0][...][0], jnp.arange(H) / 9
    bank.w[0][...] = jnp.broadcast_to(w, bank.w[0].shape)
    bank.b[0][...] = jnp.broadcast_to(b, bank.b[0].shape)
    h = jax.nn.relu(h @ w + b)
  expected = jnp.concatenate([tower(h) for tower in made.head], axis=1)
  logits, aux = run(made, batch())
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
  gates = [a for key, a in aux.items() if '.' in key]
  assert all(abs(float(a.load.sum()) - B) < 1e-4 for a in gates)
  assert len(gates) == dict(omoe=1, ple=7, ml_mmoe=4).get(name, 3)


def test_top_experts_and_shared_bottom():
  _, aux = run(model(MIXERS['top']), batch(rows=1) | dict(weights=np.ones((1, 3), np.float32)))
  assert all((a.load > 0).sum() == 2 for key, a in aux.items() if '.' in key)
  paths = ['/'.join(map(str, path)) for path, _ in nnx.to_flat_state(
      nnx.state(model(dict(name='mmoe', num_experts=1)), nnx.Param))]
  assert not [path for path in paths if 'gate' in path]


@pytest.mark.parametrize('fields', [dict(self_gate=False), dict(normalized=False), dict(ranks=(1, 2)),
                                    dict(ranks=()), dict(reads='features'), dict(joined=True)], ids=str)
def test_every_part_of_home_may_be_left_out_or_changed(home, fields):
  plain, _ = run(home, batch())
  other, _ = run(model(HOME | fields), batch())
  assert np.isfinite(other).all() and np.abs(other - plain).max() > 1e-3


@pytest.mark.parametrize('mixer, said', [
    (HOME | dict(groups=((0,), (1,))), r'groups=.*each of the 3 tasks, 0 to 2, is in one group'),
    (MIXERS['mmoe'] | dict(top=4), 'top=4: a gate sees 3 experts; nearest: 3')])
def test_mistakes(mixer, said):
  with pytest.raises(errors.UserError, match=said):
    model(mixer)


def test_columns_that_do_not_fit():
  with pytest.raises(errors.UserError, match='num_features=5, and the data have 3; .*num_features=3'):
    jax.eval_shape(model(MIXERS['mmoe'], num_features=5), batch())
  with pytest.raises(errors.UserError, match='model.num_ids=7, model.num_columns=0: .* model.num_columns=1'):
    model(MIXERS['mmoe'], num_ids=7)


def test_figure_of_the_experts_of_tasks(tmp_path):
  plain = synthetic.write_run(tmp_path / 'plain')
  assert figure.draw(runs.read(plain)) == {}
  layers = ('level_0', 'level_0.task_0', 'level_0.task_1')
  folder = synthetic.write_run(tmp_path / 'run', layers=layers, experts=2)
  last = max((folder / 'router_stats').glob('*.npz'), key=lambda path: int(path.stem))
  np.savez(last, moe_load=np.float32([[3, 1], [3, 0], [1, 1]]),
           layers=np.array(layers))
  [drawn] = figure.draw(runs.read(folder)).values()
  assert [text.get_text() for text in drawn.axes[0].texts] == ['1.00', '0.50', '0.50']
  assert set(figure.CAPTIONS) == {figure.STEM}
