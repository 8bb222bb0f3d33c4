"""Mowst and networks over graphs: padding, rows apart, running means, phases, turns, a run that resumes."""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import router_state
from stmoe.analysis.figures import mowst as figure
from stmoe.core.units import mixture
from stmoe.data import batches as pipeline
from stmoe.data.graphs import drawn
from stmoe.targets import mowst as target
from stmoe.train import check
from stmoe.train import loop
from tests.analysis import test_momentum_figure as runs


def model(**fields):
  fields = dict(name='mowst', num_features=3, num_outputs=4, d_model=8) | fields
  return jax.jit(lambda: lookup.recipe('model', fields)(rngs=nnx.Rngs(0)))()     # one program, not many


def graph(seed, nodes, room=6, edges=8):
  """A batch of one graph of `nodes` nodes in a row of `room`."""
  rng, real = np.random.default_rng(seed), (np.arange(room) < nodes).astype(np.float32)
  features = rng.normal(size=(room, 3)).astype(np.float32) * real[:, None]
  return dict(features=features[None], edges=rng.integers(0, nodes, (1, edges, 2)).astype(np.int32),
              edge_weights=np.ones((1, edges), np.float32), node_weights=real[None], weights=real[None],
              labels=rng.integers(0, 4, (1, room)).astype(np.int32))


@jax.jit
def train(model, batch):
  return model(batch, train=True)


@jax.jit
def evaluate(model, batch, key=None):
  return model(batch, key=key)


def test_rows_are_apart_padding_changes_nothing_and_running_means_are_those_of_all_rows():
  made, (one, two) = model(strong='gin'), (graph(0, 6), graph(1, 4))
  both = {name: np.concatenate([one[name], two[name]]) for name in one}
  outputs, aux = train(made, both)
  parts = [train(made, part) for part in (one, two)]
  for i, (alone, _) in enumerate(parts):
    np.testing.assert_allclose(outputs.logits[i], alone.logits[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(outputs.weights.sum(-1), 1, rtol=1e-6)
  wider = dict(two, **{name: np.pad(two[name], [(0, 0), (0, 2), (0, 0)][:two[name].ndim], mode='edge')
                       for name in ('features', 'labels')},
               **{name: np.pad(two[name], [(0, 0), (0, 2)]) for name in ('node_weights', 'weights')})
  np.testing.assert_allclose(train(made, wider)[0].logits[0, :4], outputs.logits[1, :4], rtol=1e-5, atol=1e-6)
  apart = {name: jnp.stack([report['encoder'].statistics[name].value for _, report in parts]).mean(0)
           for name in aux['encoder'].statistics}
  for name, mean in apart.items():                                   # a mean over rows, of devices and parts
    np.testing.assert_allclose(aux['encoder'].statistics[name].value, mean, rtol=1e-5, atol=1e-6)
  router_state.commit(made, aux)
  norm = made.encoder.network.weak.norms[0]
  np.testing.assert_allclose(norm.mean[...], 0.1 * apart['weak.norm_0.mean'], rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(norm.variance[...], 0.9 + 0.1 * apart['weak.norm_0.variance'], rtol=1e-5)


@pytest.mark.parametrize('kind', ['gcn', 'gin'])
def test_what_a_batch_norm_takes_away_has_no_gradient(kind):
  """A bias before a batch norm would otherwise move by rounding, by another on other devices."""
  made = model(name='graph', network=kind)
  grads = jax.jit(jax.grad(lambda model, batch: jnp.sum(jnp.square(model(batch, train=True)[0]))))(
      made, graph(0, 6)).encoder.network
  first, last = grads.convolutions
  biases = [first.b] if kind == 'gcn' else [part.linear.b for part in first.network.convolutions]
  assert not any(np.any(b[...]) for b in biases) and np.any(grads.norms[0].bias[...])
  assert np.any((last.b if kind == 'gcn' else last.network.convolutions[-1].linear.b)[...])


def test_experts_learn_alone_first_and_answer_by_draws():
  rng = np.random.default_rng(0)
  weights = jnp.asarray(rng.dirichlet([1, 1], size=(1, 5)), jnp.float32)
  outputs = mixture.Mixture(jnp.asarray(rng.normal(size=(1, 5, 2, 4)), jnp.float32), weights, weights)
  batch = dict(labels=jnp.asarray(rng.integers(0, 4, (1, 5))), weights=jnp.ones((1, 5)))
  each = target.likelihoods(outputs.logits, batch['labels'])[0].mean(0)
  for first, share in dict(weak=[1, 0], strong=[0, 1], both=[1, 1]).items():
    kind = target.Mowst(first=first, first_steps=3)
    loss = lambda step, kind=kind: float(kind.at(step).loss(outputs, batch, kind.counts(batch))[0])
    np.testing.assert_allclose(loss(2), each @ np.array(share), rtol=1e-6)
    np.testing.assert_allclose(loss(3), target.separate(outputs, batch['labels']).mean(), rtol=1e-6)
  found = kind.metrics(kind.judge(outputs, batch) | dict(weight=5.0))
  np.testing.assert_allclose(sum(v for name, v in found.items() if name.endswith('_nodes')), 1, rtol=1e-6)
  certain = outputs.replace(answers=jnp.stack([jnp.ones((1, 5)), jnp.zeros((1, 5))], -1))
  right = kind.metrics(kind.judge(certain, batch) | dict(weight=5.0))
  assert right['eval/accuracy'] == right['eval/accuracy_weak']


def test_the_confidence_decides_by_draws_of_a_key_in_evaluation():
  made, batch = model(draws=4), graph(0, 6)
  drawn_, again = (evaluate(made, batch, jax.random.key(0))[0] for _ in range(2))
  expected = evaluate(made, batch)[0]
  assert np.array_equal(drawn_.answers, again.answers)
  assert set(np.unique(drawn_.answers * 4)) <= {0, 1, 2, 3, 4}
  np.testing.assert_array_equal(expected.answers, expected.weights)
  assert not np.allclose(evaluate(model(double_softmax=True), batch)[0].weights, expected.weights)


def test_drawn_graphs_have_what_they_promise():
  nodes, edges, labels = drawn.digits(200, 64, 0.5)
  alike = labels[edges[:, 0]] == labels[edges[:, 1]]
  share = np.bincount(edges[:, 1], alike, 200) / np.maximum(np.bincount(edges[:, 1], minlength=200), 1)
  noisy = share > 0.4                                                # by their neighbours
  assert nodes.shape == (200, 64) and 0.35 < noisy.mean() < 0.6
  parts = [drawn.split(200, 0, held) for held in ('validation', 'test')]
  assert [part.sum() for part in (parts[0][0], parts[0][1], parts[1][1])] == [100, 40, 60]
  assert not (parts[0][1] & parts[1][1]).any() and (drawn.split(200, 1, 'test')[0] != parts[0][0]).any()
  _, edges, labels = drawn.citations(300, 50, 0.5)
  assert 0.75 < (labels[edges[:, 0]] == labels[edges[:, 1]]).mean() < 0.92


@pytest.mark.parametrize('override, said', [
    ('model.num_features=9', 'model.num_features=9, and the data have 64; nearest: model.num_features=64'),
    ('blocks.m.layer=dense', 'config.blocks.m.layer'),
    ('model.strong=gcm', "model.strong: no network is called 'gcm'; "),
    ('loss.first=none', "loss.first='none' with loss.first_steps=5.*go together; nearest: loss.first=strong"),
    ('model.num_outputs=3', "model.num_outputs=3, but data.task='digits' has 10 ids"),
    ('data.nodes=False', 'labels are of whole graphs'), ('data.num_edges=9', 'nearest: data.num_edges=')])
def test_mistakes_are_one_line(override, said, tmp_path):
  with pytest.raises(errors.UserError, match=said) as caught:
    cfg = experiment.load('mowst/digits:smoke', ['loss.first_steps=5', override])[0]
    loop.train(cfg, tmp_path / 'run')
  assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()


def test_a_figure_shows_who_decides():
  lines = {f'eval/tenth_{i}_{name}': 0.5 for i in (0, 9) for name in ('nodes', 'weak', 'strong')}
  run = runs.made({})
  run.lines.append({'step': 10, 'eval/confidence': 0.4} | dict.fromkeys(figure.LINES, 0.5) | lines)
  by_confidence, over_steps = figure.draw(run)[figure.STEM].axes
  assert [bar.get_height() for bar in by_confidence.patches][::9] == [50, 50] and len(over_steps.lines) == 3
  assert figure.draw(runs.made({})) == {}


@pytest.mark.slow
@pytest.mark.parametrize('method', ['mowst', 'star', 'sage'])
def test_a_run_and_its_continuation(method, tmp_path):
  """Interrupted in a turn, a run ends as one that was not; the experts that have no turn do not change."""
  load = lambda *more: experiment.load(f'mowst/digits:method={method},smoke', more)[0]
  assert loop.train(load(), tmp_path / 'whole') == 0
  assert loop.train(load('train.steps=10'), tmp_path / 'parts') == 0
  assert loop.train(load(), tmp_path / 'parts') == 0
  whole, parts = (json.loads((tmp_path / name / 'DONE').read_text()) for name in ('whole', 'parts'))
  assert {n: v for n, v in whole.items() if n != 'time'} == {n: v for n, v in parts.items() if n != 'time'}
  assert pipeline.info(load())['num_rows'] == dict(train=1, validation=1)
  assert check.batch_shapes(load(), 1)['features'].shape == (1, 200, 64)
