"""Runs of other targets than ids: they train, evaluate and continue; microbatches and devices change nothing.

The target `huber` and the source `toy` are each one file and nothing else.
"""

import json

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe.analysis import flops
from stmoe.answer import score
from stmoe.data import batches as pipeline
from stmoe.derive import convert
from stmoe.runs import directory as rundir
from stmoe.train import beside
from stmoe.train import check
from stmoe.train import evaluate
from stmoe.train import loop
from stmoe.train import state as states
from stmoe.train import step as steps
from tests.targets import toy
from tests.train import tiny_run

LOSSES = {name: dict(name=name) for name in ('values', 'binary', 'ranking')} | dict(
    huber=dict(name='huber', delta=0.3))
VALUES = LOSSES['values']
# name -> a metric of training, and one of evaluation that only it has.
MEASURED = dict(values=('loss/mse', 'eval/rmse'), binary=('loss/ce', 'eval/auc'),
                ranking=('loss/ce', 'eval/accuracy'), huber=('loss/huber', 'eval/within'))


@pytest.fixture(scope='module', autouse=True)
def corpus(tmp_path_factory):
  folder = tiny_run.write_corpus(tmp_path_factory.mktemp('toy'))
  with toy.files(folder):
    yield folder


def computed(cfg, devices):
  """(gradients, report, sums of evaluation) of the first batch on so many devices."""
  with states.on_mesh(cfg.mesh, jax.devices()[:devices]) as mesh:
    plan = states.blueprint(cfg, mesh)
    check.forward(cfg, plan)
    complete = beside.opened(plan, pipeline.info(cfg)['vocab'])
    state = states.init(cfg, plan)
    data = pipeline.train_iterator(cfg)
    batch = complete(check.place(next(data), mesh))
    data.close()
    work = jax.jit(lambda state, batch: steps.gradients(cfg, plan, state, batch, cfg.train.microbatches)[:2])
    sums = evaluate.make(plan)(state['params'], state['router_state'], batch, state['key'])
    return jax.device_get((*work(state, batch), sums))


SPREAD = {'train.microbatches': 2, 'mesh.expert': 2, 'mesh.model': 2}


def assert_same(one, other):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), one, other)


@pytest.mark.parametrize('name', [
    'ranking', *(pytest.param(name, marks=pytest.mark.slow) for name in ('values', 'binary'))])
def test_microbatches_and_devices_change_nothing(corpus, name):
  whole, parts = (computed(toy.config(corpus, LOSSES[name], **changed), devices)
                  for changed, devices in (({}, 1), (SPREAD, 8)))
  assert whole[1][MEASURED[name][0]] > 0
  assert_same(whole, parts)


def done(path):
  values = json.loads((path / 'DONE').read_text())
  return {name: value for name, value in values.items() if name != 'time'}


@pytest.mark.parametrize('name', [
    'huber', *(pytest.param(name, marks=pytest.mark.slow) for name in ('values', 'binary', 'ranking'))])
def test_a_run_trains_evaluates_and_continues(corpus, name, tmp_path):
  cfg = lambda **changed: toy.config(corpus, LOSSES[name], **{'checkpoint.best': MEASURED[name][1]} | changed)
  one = jax.devices()[:1]
  assert loop.train(cfg(), tmp_path / 'whole', devices=one) == 0
  assert loop.train(cfg(**{'train.steps': 2}), tmp_path / 'parts', devices=one) == 0
  assert loop.train(cfg(), tmp_path / 'parts', devices=one) == 0
  values = done(tmp_path / 'whole')
  assert done(tmp_path / 'parts') == values
  assert set(MEASURED[name]) <= set(values) and values['tokens'] > 0 and np.isfinite(values['eval/loss'])
  assert 'loss/ce' not in values or name in ('binary', 'ranking')
  best = json.loads((tmp_path / 'whole' / 'best.json').read_text())
  assert best['value'] == pytest.approx(values[MEASURED[name][1]], rel=1e-8)
  evaluated = score.score(rundir.opened(tmp_path / 'whole'), tmp_path / 'whole', print, devices=one)[1]
  assert evaluated['eval/loss'] == pytest.approx(values['eval/loss'], rel=1e-8)


@pytest.fixture(scope='module')
def teacher(corpus, tmp_path_factory):
  path = tmp_path_factory.mktemp('teacher')
  assert loop.train(text(corpus, steps=2, **{'schedule.peak': 0.1}), path, devices=jax.devices()[:1]) == 0
  return path


def text(corpus, steps, loss=None, **changed):
  dense = {'model.layers': (('d', 1),), 'losses': {}, 'train.steps': steps, 'eval.every': 4,
           'eval.batches': 1}
  return tiny_run.config(corpus, **dense | ({'loss': loss} if loss else {}) | changed)


def distilled(run, **fields):
  return dict(name='teacher', run=str(run), temperature=2.0, weight=0.7,
              inner=dict(name='ids', z=1e-4, label_smoothing=0.1)) | fields


@pytest.mark.slow
def test_distillation_by_a_run(corpus, teacher, tmp_path):
  spread = SPREAD | {'mesh.expert': 1, 'train.batch_size': 8}
  whole, parts = (computed(text(corpus, 4, distilled(teacher), **changed), devices)
                  for changed, devices in (({}, 1), (spread, 8)))
  assert_same(whole, parts)
  assert whole[1]['loss/distil'] > 1e-6
  plain = computed(text(corpus, 4, distilled(teacher)['inner']), 1)
  expected = 0.3 * plain[1]['loss/total'] + 0.7 * whole[1]['loss/distil']
  np.testing.assert_allclose(whole[1]['loss/total'], expected, rtol=1e-5)
  assert whole[1]['loss/ce'] == pytest.approx(plain[1]['loss/ce'], rel=1e-6)


def states_of(run, **fields):
  return distilled(run, layers=(('decoder_00', 'decoder_00'),), hidden_weight=0.5) | fields


@pytest.mark.slow
def test_states_of_a_run(corpus, teacher):
  """Blocks of two segments, of another width than the teacher's: a matrix of each; no predictions."""
  pairs = dict(layers=(('decoder_00', 'decoder_00'), ('decoder_02', 'decoder_00')), project=16, weight=0.0)
  sizes = {'model.d_model': 24, 'model.layers': (('d', 1), ('d', 2)), 'model.vocab_size': 272}
  make = lambda **changed: text(corpus, 4, states_of(teacher, **pairs), **sizes | changed)
  spread = SPREAD | {'mesh.expert': 1, 'train.batch_size': 8}
  whole, parts = (computed(make(**changed), devices) for changed, devices in (({}, 1), (spread, 8)))
  assert_same(whole, parts)
  plain = computed(text(corpus, 4, distilled(teacher)['inner'], **sizes), 1)
  assert whole[1]['loss/hidden'] > 1e-3 and 'loss/distil' not in whole[1]
  expected = plain[1]['loss/total'] + 0.5 * whole[1]['loss/hidden']
  np.testing.assert_allclose(whole[1]['loss/total'], expected, rtol=1e-5)
  mine, theirs, bare = (flops.active_per_token(cfg) for cfg in (
      make(), rundir.opened(teacher), text(corpus, 4, **sizes)))
  assert mine['forward'] == bare['forward'] + 2 * 2 * 24 * 16        # of each of the matrices
  assert mine['train'] == 3 * mine['forward'] + theirs['forward']
  readers = whole[0]['reader']
  assert {name: one['w'].shape for name, one in readers.items()} == dict.fromkeys(
      ('decoder_00', 'decoder_02'), (24, 16))
  assert all(np.abs(one['w']).max() > 1e-6 for one in readers.values())


@pytest.mark.slow
def test_a_distilled_run_continues_with_its_teacher_only(corpus, teacher, tmp_path):
  one, path = jax.devices()[:1], tmp_path / 'student'
  assert loop.train(text(corpus, 2, distilled(teacher)), path, devices=one) == 0
  assert loop.train(text(corpus, 4, distilled(teacher)), path, devices=one) == 0
  values = done(path)
  assert values['eval/distil'] > 0 and values['eval/bits_per_byte'] > 0
  more = text(corpus, 4, **{'schedule.peak': 0.1, 'eval.every': 9})
  assert loop.train(more, teacher, devices=one) == 0                 # the teacher learns more
  with pytest.raises(errors.UserError, match='trained with another model beside it'):
    loop.train(text(corpus, 6, distilled(teacher)), path, devices=one)
  pinned = text(corpus, 4, distilled(teacher, step=2))
  assert loop.train(pinned, tmp_path / 'again', devices=one) == 0
  assert done(tmp_path / 'again') == values                          # undisturbed


@pytest.mark.slow
def test_a_run_that_learned_states_goes_on_and_is_exported_without_its_matrices(corpus, teacher, tmp_path):
  router = dict(name='deepseek_moe', num_experts=4, k=2, normalize_gates=True)
  sparse = dict(layer='moe', executor='einsum', group_size=None, router=router,
                experts=dict(name='glu', d_ff=8, activation='silu'))
  make = lambda steps: text(corpus, steps, states_of(teacher, project=16, distance='cosine'), **{
      'model.layers': (('m', 2),), 'blocks': dict(m=sparse), 'model.scale_head': False,
      'losses': dict(balance=(0.01, 'mean'))})
  one, path = jax.devices()[:1], tmp_path / 'student'
  assert loop.train(make(2), path, devices=one) == 0 and loop.train(make(4), path, devices=one) == 0
  assert loop.train(make(4), tmp_path / 'whole', devices=one) == 0
  values = done(path)
  assert done(tmp_path / 'whole') == values and 0 < values['eval/hidden'] < 2
  assert values['flops'] == 4 * loop.flops_per_step(make(4))
  convert.write(path, tmp_path / 'exported', to='mixtral')
  assert b'reader' not in (tmp_path / 'exported' / 'model.safetensors').read_bytes()


@pytest.mark.parametrize('make, message', [
    (lambda c, t: toy.config(c, dict(name='ids')),
     "loss.name=.ids. judges .* of data.source=.toy. are values; nearest: binary, huber, ranking, values"),
    (lambda c, t: tiny_run.config(c, loss=dict(name='values')),
     "loss.name='values' judges values, .*'lm' are ids; nearest: ids"),
    (lambda c, t: toy.config(c, VALUES, **{'model.num_outputs': 2}), 'nearest: model.num_outputs=3'),
    (lambda c, t: toy.config(c, VALUES, **{'model.num_features': 5}), 'nearest: model.num_features=6'),
    (lambda c, t: toy.config(c, dict(name='valus')), "no target is called 'valus'; nearest: values"),
    (lambda c, t: toy.config(c, dict(name='huber', delta=-1.0)), 'loss.delta=-1.0: expected a number above'),
    (lambda c, t: toy.config(c, VALUES, **{'eval.draws': 2}), 'eval.draws=2: .*nearest: eval.draws=1'),
    (lambda c, t: toy.config(c, VALUES, **{'checkpoint.best': 'eval/auc'}), 'checkpoint.best=.*eval/loss'),
    (lambda c, t: toy.config(c, LOSSES['binary'], **{'checkpoint.best': 'eval/gauc'}),
     "'eval/gauc': there is no such score; nearest: eval/auc"),              # the data have no users
    (lambda c, t: text(c, 4, distilled('')), "loss.run='': the data bring no other_outputs"),
    (lambda c, t: text(c, 4, distilled('nowhere')), "loss.run='nowhere': .*nowhere"),
    (lambda c, t: text(c, 4, distilled(t, step=3)), 'loss.run=.* no checkpoint of step 3'),
    (lambda c, t: text(c, 4, distilled(t), **{'model.vocab_size': 300}), r'gives \[8, 32, 264\].*vocab_size'),
    (lambda c, t: toy.config(c, distilled(t, inner=VALUES)), 'no distance of two predictions'),
    (lambda c, t: text(c, 4, states_of(t, layers=(('decoder_03', 'decoder_00'),))),
     "has no block 'decoder_03'.*it has: decoder_00"),
    (lambda c, t: text(c, 4, states_of(t, layers=(('decoder_00', 'decoder_2'),))),
     "loss.run=.*has no block 'decoder_2'; nearest: decoder_00"),
    (lambda c, t: text(c, 4, states_of(t), **{'model.d_model': 24}),
     r'are \[8, 32, 16\], and here after decoder_00 \[8, 32, 24\]; nearest: loss.project=16'),
    (lambda c, t: text(c, 4, states_of(t, layers=(), project=8)), 'loss.project=8: .*loss.project=0')])
def test_what_does_not_fit_is_said_before_anything_is_written(corpus, teacher, tmp_path, make, message):
  with pytest.raises(errors.UserError, match=message):
    loop.train(make(corpus, teacher), tmp_path / 'run', devices=jax.devices()[:1])
  assert not (tmp_path / 'run').exists()
