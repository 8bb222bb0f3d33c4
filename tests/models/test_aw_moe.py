"""AW-MoE by hand: scores, an empty history, the second view, the contrastive loss, other shapes."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.data import batches as pipeline
from stmoe.models import aw_moe
from stmoe.train import check
from stmoe.train import state as states
from stmoe.train import step as steps

B, K, M, D, E = 3, 2, 4, 3, 2


def model(**fields):
  fields = dict(name='aw_moe', num_items=9, length=M, num_outputs=K, d_model=D, num_experts=E, expert=(5,),
                hidden=(4,)) | fields
  made = lookup.recipe('model', fields)(rngs=nnx.Rngs(0))
  grow = lambda a: 8 * a if a.ndim > 1 else a + 0.1
  nnx.update(made, jax.tree.map(grow, nnx.state(made, nnx.Param)))
  return made


def batch():
  rng = np.random.default_rng(0)
  return dict(items=rng.integers(1, 9, (B, K)), history=rng.integers(1, 9, (B, M)),
              history_weights=np.float32([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]),
              weights=np.ones((B, K), np.float32), group=np.array([4, 5, 6]))


@jax.jit
def run(made, rows):
  return made(rows)


def net(p, x):
  return np.maximum(x @ p['w'][0] + p['b'][0], 0) @ p['w'][1] + p['b'][1]


def by_hand(p, rows):
  scores = np.zeros((B, K))
  for b in range(B):
    past = [p['items'][j] for j, real in zip(rows['history'][b], rows['history_weights'][b]) if real]
    more = [] if 'query' not in rows else [p['queries'][rows['query'][b]]]
    for k in range(K):
      t = p['items'][rows['items'][b, k]]
      told = rows['history_features'][b] if 'history_features' in rows else np.zeros((M, 0))
      pairs = [np.concatenate([e, t, e * t, f]) for e, f in zip(past, told)]
      asked = [np.concatenate([pair, *more]) for pair in pairs]
      u = sum((net(p['unit'], x) * e for x, e in zip(asked, past)), np.zeros(D))
      g = [net(p['gate_unit'], x) * net(p['gate'], pair) for x, pair in zip(asked, pairs)]
      g = sum(g) if past else p['alone']
      z = np.concatenate([u, t, *more, *([rows['features'][b, k]] if 'features' in rows else [])])
      h = [np.maximum(z @ p['experts']['w'][0][e] + p['experts']['b'][0][e], 0) for e in range(E)]
      scores[b, k] = sum(g[e] * (h[e] @ p['head']['w'][e] + p['head']['b'][e]) for e in range(E)).item()
  return scores


SEARCH = dict(query=np.array([2, 0, 1]), features=np.ones((B, K, 2), np.float32),
              history_features=np.arange(B * M, dtype=np.float32).reshape(B, M, 1) / 9)
TOLD = dict(num_queries=3, num_features=2, num_history_features=1)


@pytest.mark.parametrize('fields, more', [({}, {}), (TOLD, SEARCH)], ids=['plain', 'search'])
def test_scores_by_hand(fields, more):
  made, rows = model(**fields), batch() | more
  params = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(made, nnx.Param)))
  scores, aux = run(made, rows)
  np.testing.assert_allclose(scores, by_hand(params, rows), rtol=1e-4, atol=1e-4)
  assert aux['gate'].losses == {} and aux['gate'].load.shape == (E,)
  padded = rows | dict(history=np.where(rows['history_weights'] > 0, rows['history'], 0))
  np.testing.assert_allclose(run(made, padded)[0], scores, rtol=1e-5)


@pytest.mark.parametrize('fields', [
    dict(gate='constant'), dict(gate='uniform'), dict(outputs='vector'), dict(gate_softmax=True),
    dict(unit_softmax=True)], ids=str)
def test_variants_are_other_models(fields):
  plain, other = run(model(), batch())[0], run(model(**fields), batch())[0]
  assert np.isfinite(other).all() and np.abs(other - plain).max() > 1e-3


def test_loss_of_views_by_hand():
  """Row 1 has the user of row 0, row 3 is not there: row 0 has one other row."""
  rng = np.random.default_rng(0)
  g, view = rng.normal(size=(2, 4, 3))
  user, real, tau = np.array([7, 7, 8, 9]), np.array([True, True, True, False]), 0.5
  cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  others = {0: [2], 1: [2], 2: [0, 1]}
  expected = [-np.log(np.exp(cos(g[i], view[i]) / tau) / (np.exp(cos(g[i], view[i]) / tau) + sum(
      np.exp(cos(g[i], g[j]) / tau) for j in others[i]))) for i in others] + [0]
  loss, cosine = aw_moe.contrast(*map(jnp.asarray, (g, view, user, real)), tau)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(cosine, [cos(a, b) for a, b in zip(g[:3], view[:3])] + [0], rtol=1e-5)
  slope = jax.grad(lambda g: jnp.sum(aw_moe.contrast(g, g, jnp.asarray(user), jnp.asarray(real), tau)[0]))
  assert np.isfinite(slope(jnp.zeros((4, 3)))).all()


def test_a_view_is_a_part_of_the_history_and_never_empty():
  seen = np.arange(12) < np.arange(13)[:, None]                      # histories of 0 to 12
  views = np.array([aw_moe.thinned(jax.random.key(i), jnp.asarray(seen), 0.7) for i in range(40)])
  assert not (views & ~seen).any() and views.any(-1)[:, 1:].all() and not views[:, 0].any()
  assert 0.25 < views[:, 12].mean() < 0.38


@pytest.mark.parametrize('fields, more, said', [
    (dict(length=5), {}, 'model.length=5, and the data have 4; nearest: model.length=4'),
    (dict(num_outputs=1), {}, 'nearest: model.num_outputs=2'),
    (dict(num_queries=3), {}, 'model.num_queries=3, and the data have no queries'),
    ({}, dict(features=np.ones((B, K, 2))), 'nearest: model.num_features=2')], ids=str)
def test_other_shapes_are_one_line(fields, more, said):
  with pytest.raises(errors.UserError, match=said):
    jax.eval_shape(model(**fields), batch() | more)


def computed(tmp_path, devices, *changed):
  """(gradients, report) of the first batch of the smoke; histories of one item have equal views."""
  cfg, _ = experiment.load('aw_moe/sessions:smoke', [
      '--config.data.length=1', '--config.model.length=1', '--config.model.group_size=2',
      '--config.data.num_items=20', '--config.model.num_items=20', f'--config.data.cache_dir={tmp_path}',
      *changed])
  with states.on_mesh(cfg.mesh, jax.devices()[:devices]) as mesh:
    plan = states.blueprint(cfg, mesh)
    check.forward(cfg, plan)
    data = pipeline.train_iterator(cfg)
    placed = check.place(next(data), mesh)
    data.close()
    work = jax.jit(lambda state, batch: steps.gradients(cfg, plan, state, batch, cfg.train.microbatches)[:2])
    return jax.device_get(work(states.init(cfg, plan), placed))


@pytest.mark.slow
def test_microbatches_and_devices_change_nothing(tmp_path):
  whole = computed(tmp_path, 1)
  spread = '--config.train.microbatches=2', '--config.mesh.model=2', '--config.mesh.expert=2'
  parts = computed(tmp_path, 8, *spread)
  assert whole[1]['loss/aux_contrast'] > 0.1
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), whole, parts)
