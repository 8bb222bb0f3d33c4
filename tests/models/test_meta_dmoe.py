"""Meta-DMoE: domains apart, who learns when, test-time adaptation, microbatches, and a run that resumes."""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.analysis.figures import meta_dmoe as figure
from stmoe.targets import meta_dmoe as target
from stmoe.train import loop
from tests.analysis import test_momentum_figure as runs

SUPPORT, SIZE = 3, 5


def model(**fields):
  fields = dict(name='meta_dmoe', num_features=4, num_outputs=3, d_model=4, d_ff=6, num_experts=2,
                num_domains=4, num_heads=2, support=SUPPORT, inner_rate=0.5, pretrain_steps=2) | fields
  return jax.jit(lambda: lookup.recipe('model', fields)(rngs=nnx.Rngs(0)))()     # one program, not many


def batch(rows=4, seed=0):
  rng = np.random.default_rng(seed)
  judged = np.broadcast_to(np.arange(SIZE) >= SUPPORT, (rows, SIZE)).astype(np.float32)
  return {'features': rng.normal(size=(rows, SIZE, 4)).astype(np.float32), 'weights': judged,
          'labels': rng.integers(0, 3, (rows, SIZE)).astype(np.int32),
          'given/domain': np.arange(rows, dtype=np.int32) % 4}


@jax.jit
def learned(model, batch, step):
  """(logits, losses of the pre-training, gradients of the target's loss and of the losses)."""
  kind = target.MetaDmoe(num_domains=4)

  def loss(model):
    logits, aux = model(batch, key=jax.random.key(0), train=True, step=step)
    own = aux['encoder'].losses
    return kind.loss(logits, batch, kind.counts(batch))[0] + sum(own.values()), (logits, own, aux)
  (_, (logits, own, aux)), grads = jax.value_and_grad(loss, has_aux=True)(model)
  return logits, own, grads, aux['encoder'].load


evaluated = jax.jit(lambda model, batch: model(batch)[0])
evaluated_load = jax.jit(lambda model, batch: model(batch)[1]['encoder'].load)


def moved(grads, part):
  return any(np.any(g) for g in jax.tree.leaves(getattr(grads, part)))


def test_the_experts_learn_first_and_the_aggregator_through_the_step_of_the_student():
  made, rows = model(), batch()
  logits, own, grads, _ = learned(made, rows, 1)
  np.testing.assert_allclose(logits[:, :, 0], logits[:, :, 1], rtol=1e-5)          # it does not adapt yet
  assert own['experts'] > 0 < own['aggregator'] and moved(grads, 'experts') and moved(grads, 'pretrained')
  logits, own, grads, _ = learned(made, rows, 2)
  assert own['experts'] == own['aggregator'] == 0
  assert np.abs(logits[:, :, 0] - logits[:, :, 1]).max() > 0.01
  assert not moved(grads, 'experts') and not moved(grads, 'pretrained')
  assert moved(grads, 'aggregator') and moved(grads, 'student') and moved(grads, 'head')


def test_rows_of_filler_are_no_load_of_experts():
  rows = batch()
  rows['weights'] = rows['weights'] * [[1], [1], [1], [0]]
  np.testing.assert_array_equal(evaluated_load(model(), rows), [3 * SUPPORT] * 2)


def test_the_labels_of_the_support_do_not_count_and_rows_are_apart():
  made, rows = model(), batch()
  for step in (1, 2):
    _, own, grads, _ = learned(made, rows, step)
    other = dict(rows, labels=np.where(rows['weights'] > 0, rows['labels'], 2))
    _, same, others, _ = learned(made, other, step)
    assert own == same
    jax.tree.map(np.testing.assert_array_equal, grads, others)
  whole = evaluated(made, rows)
  one = evaluated(made, {name: array[1:2] for name, array in rows.items()})
  np.testing.assert_allclose(one[0], whole[1], rtol=1e-5, atol=1e-6)


def test_an_own_expert_is_away_in_training_and_there_in_evaluation():
  made, rows = model(), batch()
  before = learned(made, rows, 2)[0], evaluated(made, rows)
  made.experts.first.w[...] = made.experts.first.w[...].at[0].mul(5.0)     # of domains 0 and 1
  after, _, _, load = learned(made, rows, 2)
  changed = [np.any(np.asarray(a[:, :, 0]) != b[:, :, 0], axis=(1, 2)).tolist()
             for a, b in zip((after, evaluated(made, rows)), before)]
  assert changed == [[False, False, True, True], [True] * 4] and load.tolist() == [2 * SUPPORT] * 2


def test_accuracy_is_by_domain_of_both_students():
  kind, rows = target.MetaDmoe(num_domains=5), batch()
  wanted = jax.nn.one_hot(jnp.asarray(rows['labels']), 3)
  wrong = jnp.roll(wanted, 1, axis=-1)
  outputs = jnp.stack([wanted.at[3].set(wrong[3]), wrong], axis=2)
  found = kind.metrics(jax.tree.map(np.asarray, kind.judge(outputs, rows)) | dict(weight=8.0))
  assert found['eval/accuracy'] == 0.75 and found['eval/worst_accuracy'] == 0 == found['eval/accuracy_before']
  assert found['eval/domain_0_adapted'] == 1 and found['eval/domain_3_adapted'] == 0
  assert 'eval/domain_4_adapted' not in found
  run = runs.made({})
  run.lines.append({name: float(value) for name, value in dict(found, step=10).items()})
  bars, _ = figure.draw(run)[figure.STEM].axes
  assert [patch.get_height() for patch in bars.patches] == [0] * 4 + [100] * 3 + [0]
  assert figure.draw(runs.made({})) == {}


@pytest.mark.parametrize('override, said', [
    ('model.support=32', 'model.support=32, and data.support is 64; nearest: model.support=64'),
    ('model.num_domains=9', 'model.num_domains=9, and data.sources is 12; nearest: model.num_domains=12'),
    ('model.num_experts=1', 'model.num_experts=1 with model.mask_own=True: no expert is left'),
    ('model.num_experts=20', 'there are 12 domains to train them on; nearest: model.num_experts=12'),
    ('model.num_heads=5', 'model.num_heads=5 does not divide model.d_model=32; possible: 1, 2, 4, 8'),
    ('data.size=60', 'model.support=64 of the data.size=60 images'),
    ('data.size=400', "a domain of the split 'validation' has 359 images; nearest: data.size=359"),
    ('data.source=graphs', "data.source='graphs'")])
def test_mistakes_are_one_line(override, said, tmp_path):
  with pytest.raises(errors.UserError, match=said) as caught:
    loop.train(experiment.load('meta_dmoe/digits:smoke', [override])[0], tmp_path / 'run')
  assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_run_and_its_continuation_over_both_stages_and_in_microbatches(tmp_path):
  # A schedule of shares of all steps would be another in a run of half the steps.
  flat = 'schedule.factor=1.0',
  load = lambda *more: experiment.load('meta_dmoe/digits:smoke', (*flat, *more))[0]
  read = lambda name: json.loads((tmp_path / name / 'DONE').read_text())
  assert loop.train(load(), tmp_path / 'whole') == 0
  assert loop.train(load('train.steps=10'), tmp_path / 'parts') == 0
  assert loop.train(load(), tmp_path / 'parts') == 0
  whole = read('whole')
  assert {n: v for n, v in whole.items() if n != 'time'} == {
      n: v for n, v in read('parts').items() if n != 'time'}
  mesh = dict(devices=jax.devices()[:1])
  assert loop.train(load('train.microbatches=2', 'model.dropout_rate=0.0'), tmp_path / 'micro', **mesh) == 0
  assert loop.train(load('model.dropout_rate=0.0'), tmp_path / 'undivided') == 0
  for name in ('loss/ce', 'loss/total', 'eval/loss'):
    np.testing.assert_allclose(read('micro')[name], read('undivided')[name], rtol=2e-4)
