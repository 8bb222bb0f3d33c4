"""Attacks stay in their ball, are the same on a mesh, and train the router by its own loss or the task's."""

import dataclasses
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.analysis.figures import adversarial as figures
from stmoe.runs import by_step
from stmoe.runs import read as runs
from stmoe.runs import records
from stmoe.targets import adversarial
from stmoe.train import loop

B, SIDE, V, E = 8, 3, 4, 2


class Part(nnx.Module):
  """x w of all pixels."""

  def __init__(self, width, *, rngs):
    self.w = axes.param(nnx.initializers.normal(0.5), (SIDE * SIDE, width), 'embed', 'unmodeled', rngs=rngs)

  def __call__(self, batch):
    return batch['image'].reshape(len(batch['image']), -1) @ self.w[...]


class Toy(nnx.Module):
  """Classes of one of two matrices, which a router chooses: weight 1, the gradient passed straight."""

  def __init__(self, rngs):
    self.router, self.experts = Part(E, rngs=rngs), nnx.List([Part(V, rngs=rngs) for _ in range(E)])

  def scores(self, batch, train=False):
    return self.router(batch)

  def __call__(self, batch, key=None, train=False, **context):
    scores = self.scores(batch)
    chosen = jax.nn.one_hot(jnp.argmax(scores, -1), E)
    gates = chosen + (scores - jax.lax.stop_gradient(scores)) * chosen
    return sum(gates[:, e, None] * part(batch) for e, part in enumerate(self.experts))[:, None], {}


def batch():
  image = jax.random.uniform(jax.random.key(1), (B, SIDE, SIDE, 1))
  return dict(image=image, labels=jnp.arange(B)[:, None] % V, weights=jnp.ones((B, 1), jnp.int32))


def target(**fields):
  return lookup.recipe('target', dict(name='adversarial', inner=dict(name='ids'), epsilon=0.3) | fields)()


def test_a_step_is_along_the_sign_and_ends_in_the_ball_and_the_range():
  image = jnp.array([0.5, 0.05, 0.95, 0.5]).reshape(1, 2, 2, 1)
  start = image + jnp.array([0.0, 0.0, 0.0, 0.2]).reshape(image.shape)
  slope = jnp.array([3.0, -1e-9, 1.0, 0.0]).reshape(image.shape)
  moved = lambda steps: adversarial.pgd(image, start, lambda x: slope, epsilon=0.1, step_size=0.07,
                                        steps=steps).reshape(-1)
  np.testing.assert_allclose(moved(1), [0.57, 0.0, 1.0, 0.6], rtol=1e-6)
  np.testing.assert_allclose(moved(2), [0.6, 0.0, 1.0, 0.6], rtol=1e-6)
  assert (moved(0) == start.reshape(-1)).all()


JUDGE = target()
PREDICT = jax.jit(lambda model, batch, key: JUDGE.predict(model, batch, key=key)[0])


def evaluated(key):
  judge, outputs = JUDGE, PREDICT(Toy(nnx.Rngs(0)), batch(), key)
  totals = {name: float(x) for name, x in judge.judge(outputs, batch()).items()} | dict(weight=float(B))
  return outputs, judge.metrics(totals)


def test_evaluation_is_seeded_and_reports_both_accuracies():
  one, values = evaluated(jax.random.key(0))
  again, other = evaluated(jax.random.key(0))[0], evaluated(jax.random.key(1))[0]
  assert (one.images == again.images).all() and (one.images != other.images).any()
  assert float(jnp.abs(one.images - batch()['image']).max()) <= 0.3 + 1e-6
  harm = lambda outputs, scores: float(JUDGE._harm(outputs, scores, batch()))
  assert harm(one.moved, one.moved_scores) > 1.2 * harm(one.clean, one.scores)
  assert 0 <= values['eval/moved'] <= 1 and values['eval/robust_loss'] != values['eval/loss']
  assert {'eval/accuracy', 'eval/robust_accuracy'} <= set(values)


def trained(**fields):
  """(loss, its terms, gradients) of a training step."""
  judge, model, key = target(**fields), Toy(nnx.Rngs(0)), jax.random.key(2)

  def loss(model):
    outputs, _ = judge.predict(model, batch(), key=key, train=True)
    return judge.loss(outputs, batch(), judge.counts(batch()))
  (total, values), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model)
  return total, values, grads


def test_the_router_learns_its_classes_or_the_task():
  total, values, grads = trained()
  parts = values['loss/ce'] + 6 * values['loss/spread'] + values['loss/route']
  np.testing.assert_allclose(total, parts, rtol=1e-5)
  # Without a loss of its own nothing trains the router; the experts have the same gradient.
  _, _, alone = trained(alpha=0.0)
  np.testing.assert_allclose(alone.experts[0].w[...], grads.experts[0].w[...], rtol=1e-5)
  total, values, task = trained(router_target='trades_model')
  assert 'loss/route' not in values and jnp.abs(task.router.w[...]).max() > 1e-3
  np.testing.assert_allclose(task.experts[1].w[...], grads.experts[1].w[...], rtol=1e-5)
  assert not np.allclose(task.router.w[...], grads.router.w[...])
  _, values, plain = trained(beta=0.0, alpha=0.0)
  assert set(values) == {'loss/ce', 'loss/route'} and not plain.router.w[...].any()


def test_a_mesh_changes_no_attack():
  one, _ = evaluated(jax.random.key(0))
  with axes.use(axes.make_mesh(data=8)):
    spread, _ = evaluated(jax.random.key(0))
  np.testing.assert_allclose(one.images, spread.images, atol=1e-6)


@pytest.mark.parametrize('override, said', [
    ('loss.epsilon=-0.1', 'loss.epsilon=-0.1'), ('loss.attack=modl', 'nearest: model'),
    ('loss.steps=-1', 'loss.steps=-1')])
def test_a_radius_below_zero_is_one_line(override, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    experiment.load('adv_moe/digits:smoke', [override])
  assert '\n' not in str(caught.value)


def test_what_has_no_distance_is_refused():
  with pytest.raises(errors.UserError, match='nearest: ids') as caught:
    target(inner=dict(name='values'))
  assert '\n' not in str(caught.value)


def test_the_figure_shows_classes_and_experts(tmp_path):
  outputs, _ = evaluated(jax.random.key(0))
  shown = {name: np.asarray(x) for name, x in target().pictures(outputs, batch()).items()}
  fields = {field.name: None for field in dataclasses.fields(runs.Run)}
  by_step.write_shown(tmp_path, 5, shown)
  run = runs.Run(**fields | dict(path=tmp_path, name='made'))
  figure = figures.draw(run)['adversarial']
  titles = [ax.get_title() for ax in figure.axes]
  assert titles[0] == f'{shown["predicted"][0]} → {shown["expert"][0]}'
  assert titles[B] == f'{shown["attacked_predicted"][0]} → {shown["attacked_expert"][0]}'
  assert figures.draw(runs.Run(**fields | dict(path=tmp_path / 'plain', name='plain'))) == {}


@pytest.mark.slow
def test_a_run_alternates_evaluates_and_continues(tmp_path):
  load = lambda *changed: experiment.load('adv_moe/digits:smoke', list(changed))[0]
  one = jax.devices()[:1]
  assert loop.train(load(), tmp_path / 'whole', devices=one) == 0
  assert loop.train(load('train.steps=10'), tmp_path / 'parts', devices=one) == 0
  assert loop.train(load('train.steps=20'), tmp_path / 'parts', devices=one) == 0
  whole, parts = (json.loads((tmp_path / name / 'DONE').read_text()) for name in ('whole', 'parts'))
  assert {'eval/accuracy', 'eval/robust_accuracy', 'eval/moved'} <= set(whole)
  assert whole['grad_norm/router'] > 0 and whole['grad_norm/experts'] == 0    # the last turn is the router's
  assert records.shown(tmp_path / 'whole')[1]['attacked_image'].shape == (12, 8, 8, 1)
  del whole['time'], parts['time']
  assert whole == parts
