"""Customisation: who learns from which rows, what the gate learns, answers, classes that are missing."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.data.sources import customized_digits
from stmoe.targets import ids

F, K = 5, 3


def model(**fields):
  fields = dict(name='customized', num_features=F, vocab_size=K, generic=(6,), local=(4,), gate=(3,)) | fields
  return lookup.recipe('model', fields)(rngs=nnx.Rngs(0))


def batch():
  rng = np.random.default_rng(0)
  return {'features': rng.normal(size=(8, F)).astype(np.float32), 'labels': rng.integers(0, K, (8, 1)),
          'weights': np.ones((8, 1), np.float32), 'given/user': np.array([0, 0, 0, 1, 1, 0, 1, 1]),
          'given/stored': np.array([0, 0, 1, 1, 1, 1, 1, 1])}


@functools.partial(jax.jit, static_argnames='train')
def run(made, rows, train=True):
  return made(rows, train=train)


@jax.jit
def slopes(made, rows):
  """Dict loss -> gradients of all parameters."""
  graph, params = nnx.split(made, nnx.Param)
  target = ids.Ids()

  def losses(params):
    logits, aux = nnx.merge(graph, params)(rows, train=True)
    return dict(aux['gate'].losses, task=target.loss(logits, rows, target.counts(rows))[0])
  return {name: nnx.to_pure_dict(grads) for name, grads in jax.jacrev(losses)(params).items()}


def touched(rows):
  """Dict loss -> parts that have a gradient."""
  any_slope = lambda tree: any(np.abs(a).max() > 0 for a in jax.tree.leaves(tree))
  return {name: {part for part, tree in grads.items() if any_slope(tree)}
          for name, grads in slopes(model(), rows).items()}


def test_each_part_learns_from_its_own_rows():
  rows = batch()
  assert touched(rows) == dict(task={'trunk', 'generic'}, local={'local'}, gate={'gate'})
  assert touched(rows | {'given/user': np.ones(8, int)})['task'] == set()
  without = touched(rows | {'given/user': np.zeros(8, int), 'given/stored': np.zeros(8, int)})
  assert without['local'] == without['gate'] == set()


def parts(made, rows):
  """(GE, LE, r) of a model as numpy."""
  states = jax.nn.relu(made.trunk(rows['features']))
  return [np.array(x, np.float64) for x in (
      made.generic(states), made.local(rows['features']), made.gate(rows['features'])[:, 0])]


def test_losses_of_the_gate_by_hand():
  rows = batch()
  generic, local, r = parts(model(), rows)
  labels, user, stored = rows['labels'][:, 0], rows['given/user'], rows['given/stored']
  bce = lambda wanted, counts: np.sum(counts * stored * (np.logaddexp(0, r) - wanted * r)) / 8
  right = generic.argmax(1) == labels
  better = ~right & (local.argmax(1) == labels)
  softmax = lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True)
  p = 1 / (1 + np.exp(-r))[:, None]
  mixture = p * softmax(local) + (1 - p) * softmax(generic)
  expected = dict(source=bce(user, 1), error=bce(better, right | better),
                  joint=-np.sum(stored * np.log(mixture[np.arange(8), labels])) / 8)
  for learns, value in expected.items():
    np.testing.assert_allclose(run(model(learns=learns), rows)[1]['gate'].losses['gate'], value, rtol=1e-5)
  soft, _ = run(model(answers='soft'), rows, train=False)
  np.testing.assert_allclose(jnp.exp(soft[:, 0]), mixture, rtol=1e-5)
  wanted = -np.log(softmax(local)[np.arange(8), labels]) * user * np.where(right, 0.25, 1)
  found = run(model(right=0.25), rows)[1]['gate'].losses['local']
  np.testing.assert_allclose(found, wanted.sum() / 8, rtol=1e-5)


def test_the_chosen_network_answers():
  rows = batch()
  generic, local, r = parts(model(), rows)
  logits, aux = run(model(), rows, train=False)
  np.testing.assert_allclose(logits[:, 0], np.where(r[:, None] > 0, local, generic), rtol=1e-5, atol=1e-6)
  assert aux['gate'].load.tolist() == [(r <= 0).sum(), (r > 0).sum()] and 0 < (r > 0).sum() < 8
  for alone, wanted in dict(generic=generic, local=local).items():
    answer, _ = run(model(answers=alone), rows, train=False)
    np.testing.assert_allclose(answer[:, 0], wanted, rtol=1e-5, atol=1e-6)
  few = run(model(classes=(0, 2)), rows, train=False)[0][:, 0]
  assert (few[r > 0, 1] < -1e8).all() and (few[r > 0][:, [0, 2]] > -1e8).all()


def test_mistakes_are_one_line():
  with pytest.raises(errors.UserError, match='there are 3 classes, from 0; nearest: .0,.'):
    model(classes=(0, 3))
  rows = batch()
  with pytest.raises(errors.UserError, match='nearest: model.num_features=5'):
    model(num_features=4)(rows)
  with pytest.raises(errors.UserError, match='reads given/user, .* nearest: data.source=customized_digits'):
    model()({name: x for name, x in rows.items() if name != 'given/user'})


def test_rows_of_digits(tmp_path):
  make = lambda **fields: customized_digits.CustomizedDigits(cache_dir=str(tmp_path), **fields)
  opened = make(num_user=20, num_held_out=50).open(None)
  train = opened.rows('', 'train', 0, True).arrays
  assert len(train['labels']) == 1747 + 20 and train['given/user'].sum() == 20
  assert train['given/stored'].sum() == 40 and train['given/stored'][-20:].all()
  held = opened.rows('', 'validation', 0, False).arrays
  assert len(held['labels']) == 100 and (held['labels'][:50] == held['labels'][50:]).all()
  assert np.abs(held['features'][:50] - held['features'][50:]).mean() > 0.05 and held['features'].max() <= 1
  user = make(num_user=20, num_held_out=50, eval_rows='user').open(None).rows('', 'validation', 0, False)
  np.testing.assert_array_equal(user.arrays['features'], held['features'][50:])
  with pytest.raises(errors.UserError, match='there are 1797 digits; nearest: data.num_user=1297'):
    make(num_user=1300).open(None)
