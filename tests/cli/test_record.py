"""`stmoe record` and `--replay`: what was recorded is replayed, in evaluation and training, or refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.answer import recorder
from stmoe.data import batches as pipeline
from stmoe.data import recording
from stmoe.decode import generate
from stmoe.runs import directory as rundir
from stmoe.runs import records
from stmoe.train import check
from stmoe.train import state as states
from stmoe.train import step as steps
from tests.cli import test_infer
from tests.train import tiny_run

ROUTER = dict(name='st_moe', num_experts=4, k=2, capacity_factor=(None, None), second_policy='all')
CHANGED = {'blocks.m.router': ROUTER, 'model.layers': (('m', 2),), 'train.steps': 2,
           'losses.z': (0.0, 'mean')}

pytestmark = pytest.mark.usefixtures('one_device')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two untrained runs of the same model and data, a and b (of another seed), and a recording of a."""
  folder = tiny_run.write_corpus(tmp_path_factory.mktemp('record'))
  for name, seed in (('a', 0), ('b', 1)):
    test_infer.write_run(folder / name, tiny_run.config(folder, **CHANGED, seed=seed))
  cfg = rundir.opened(folder / 'a')
  recorder.of_run(folder / 'a', folder / 'routes.npz', cfg, batches=2, say=lambda line: None)
  return folder


def loss(command, *words):
  code, out, err = command('eval', *words, '--json')
  assert code == 0, err
  return json.loads(out)


@pytest.mark.slow
def test_a_replayed_evaluation_is_that_of_the_same_run_and_not_of_another(command, folder):
  about, batch, routes = recording.read(folder / 'routes.npz')
  assert about.routers == ['decoder_00:4:2', 'decoder_01:4:2'] and about.step == 1
  assert routes['decoder'].shape == (*batch['decoder_input_tokens'].shape, 2, 2)
  real = batch['decoder_segment_ids'] > 0
  assert ((routes['decoder'] >= 0).all((2, 3)) == real).all()        # dropless; padding has no expert
  own, replayed = (loss(command, folder / 'a', *words) for words in ((), ('--replay', folder / 'routes.npz')))
  for name in ('eval/loss', 'eval/bits_per_byte', 'eval/accuracy'):
    assert replayed[name] == pytest.approx(own[name], rel=1e-6), name
  other = loss(command, folder / 'b', '--replay', folder / 'routes.npz')
  assert other['eval/loss'] != own['eval/loss']
  assert other['eval/max_vio'] == pytest.approx(own['eval/max_vio'])  # the load of a, in the program b


@pytest.mark.slow
def test_training_is_told_the_choices_and_its_router_learns(command, folder, tmp_path):
  code, _, err = command('train', '--like', folder / 'b', '--workdir', tmp_path / 'c', '--replay',
                         folder / 'routes.npz', '--config.train.microbatches=2')
  assert code == 0, err
  cfg, done = rundir.opened(tmp_path / 'c'), records.done(tmp_path / 'c')
  assert cfg.data.source == 'recorded' and done['step'] == 2 and 'eval/bits_per_byte' in done
  code, _, err = command('train', tmp_path / 'c', '--config.train.steps=3')          # it goes on
  assert code == 0 and records.done(tmp_path / 'c')['step'] == 3, err
  with states.on_mesh(cfg.mesh) as mesh:
    plan, source = states.blueprint(cfg, mesh), pipeline.source(cfg)
    batch = check.place(next(pipeline.train_iterator(cfg, opened=source)), mesh)
    state = states.init(cfg, plan)
    grads, _, aux = jax.jit(lambda state, batch: steps.gradients(cfg, plan, state, batch, 1))(state, batch)
    halves = jax.jit(lambda state, batch: steps.gradients(cfg, plan, state, batch, 2))(state, batch)[0]
  routes = np.asarray(batch['decoder_given/routes'])
  for at, name in enumerate(('decoder_00', 'decoder_01')):
    counts = np.bincount(routes[:, :, at][routes[:, :, at] >= 0], minlength=4)
    np.testing.assert_array_equal(aux[name].load, counts)
  router = grads['decoder']['segments'][0]['blocks'][0]['layer']['router']['w']
  assert router.shape == (2, 16, 4) and (jnp.abs(router).max((1, 2)) > 1e-5).all()
  for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(halves)):
    np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.slow
def test_generated_texts_are_recorded_with_their_prompts(command, folder, tmp_path):
  (tmp_path / 'prompts.txt').write_text('4 squared is\n10 cubed\n7\n')
  code, out, err = command('infer', folder / 'a', tmp_path / 'prompts.txt', '--length', 4, '--batch-size', 2,
                           '--record', tmp_path / 'texts.npz')
  assert code == 0, err
  about, batch, routes = recording.read(tmp_path / 'texts.npz')
  texts, targets = out.splitlines(), batch['decoder_target_tokens']
  assert len(targets) == 3 and batch['decoder_input_tokens'].shape == (3, 32) and about.text == {}
  cfg = rundir.opened(folder / 'a')
  vocabulary = pipeline.vocabulary(cfg)
  for text, prompt, ids, weights in zip(texts, (12, 8, 1), targets, batch['decoder_loss_weights']):
    assert weights.nonzero()[0].tolist() == list(range(prompt, prompt + weights.sum()))
    assert generate.text(cfg, vocabulary, ids[weights > 0]).replace('\\', '\\\\').replace('\n', '\\n') == text
  assert ((routes['decoder'] >= 0).all((2, 3)) == (batch['decoder_segment_ids'] > 0)).all()
  assert 'eval/loss' in loss(command, folder / 'b', '--replay', tmp_path / 'texts.npz')


@pytest.mark.slow
def test_what_was_dropped_stays_dropped(command, folder, tmp_path):
  tight = '--config.blocks.m.router.capacity_factor=0.5,0.5'
  code, _, err = command('record', folder / 'a', '--output', tmp_path / 'tight.npz', '--batches', 1, tight)
  assert code == 0 and 'of the choices found no slot' in err
  _, batch, routes = recording.read(tmp_path / 'tight.npz')
  assert (routes['decoder'][batch['decoder_segment_ids'] > 0] < 0).mean() > 0.1
  values = loss(command, folder / 'a', '--replay', tmp_path / 'tight.npz')
  assert 'eval/loss' in values and values.get('eval/drop_frac', 0) == 0


@pytest.mark.parametrize('change, says', [
    ('bytes', 'its digest differs'), ('cut', 'routes.npz'), ('other', 'is no recording of routing')])
def test_a_damaged_recording_is_one_line(mistake, folder, tmp_path, change, says):
  path = tmp_path / 'routes.npz'
  about, batch, routes = recording.read(folder / 'routes.npz')
  if change == 'bytes':
    recording.write(path, about, batch, routes)
    arrays = dict(np.load(path))
    arrays['routes/decoder'][0, 0, 0, 0] ^= 1
    np.savez(path, **arrays)
  elif change == 'cut':
    path.write_bytes((folder / 'routes.npz').read_bytes()[:-300])
  else:
    np.savez(path, about=np.arange(3))
  assert says in mistake('eval', folder / 'a', '--replay', path)
  assert '--sweep and --replay' in mistake('eval', folder / 'a', '--replay', path, '--sweep', 'seed=1,2')


def test_another_model_or_batch_is_one_line_before_any_compile(mistake, folder, tmp_path, monkeypatch):
  monkeypatch.setattr(states, 'init', lambda *_: pytest.fail('the first state is computed'))
  begin = ('train', '--like', folder / 'b', '--workdir', tmp_path / 'new', '--replay', folder / 'routes.npz')
  says = 'is a recording of another model: decoder_00 has {} here and 4 experts, k=2 there'
  assert says.format('8 experts, k=2') in mistake(*begin, '--config.blocks.m.router.num_experts=8')
  assert not (tmp_path / 'new').exists()
  cfg = rundir.opened(folder / 'b')
  for field, value, said in (('blocks.m.router.k', 1, '4 experts, k=1'), ('model.layers', (('m', 3),), ''),
                             ('blocks.m.router', dict(name='hash', num_experts=4, vocab_size=264), '')):
    changed = tiny_run.config(folder, **CHANGED | {field: value})
    recording.replay(changed, folder / 'routes.npz')
    with states.on_mesh(changed.mesh) as mesh, pytest.raises(errors.UserError) as error:
      check.forward(changed, states.blueprint(changed, mesh))
    assert re.search(said or 'another model|no choices that could be given', str(error.value))
  recording.replay(cfg, folder / 'routes.npz', folder / 'b')
  about, batch, routes = recording.read(folder / 'routes.npz')
  other = {name: array[:, :16] for name, array in batch.items()}
  recording.write(tmp_path / 'short.npz', about, other, {'decoder': routes['decoder'][:, :16]})
  with cfg.unlocked():
    cfg.data.files = (str(tmp_path / 'short.npz'),)
  with pytest.raises(errors.UserError, match='a recording of another model or batch'):
    pipeline.source(cfg)
  with cfg.unlocked():
    cfg.data.files, cfg.data.extra_ids = (str(folder / 'routes.npz'),), 5
  recording.write(tmp_path / 'vocab.npz', recording.About(**vars(about) | dict(vocabulary='f' * 64)), batch,
                  routes)
  with cfg.unlocked():
    cfg.data.files = (str(tmp_path / 'vocab.npz'),)
  with pytest.raises(errors.UserError, match='was recorded with another vocabulary'):
    pipeline.source(cfg)



def test_virtual_experts_are_told_apart(folder):
  cfg = tiny_run.config(folder, **CHANGED, **{'blocks.m.virtual': ('zero', 'copy')})
  with states.on_mesh(cfg.mesh) as mesh:
    plan = states.blueprint(cfg, mesh)
    model = plan.model(plan.shapes['params'], plan.shapes['router_state'])
    routers = recording.routers(model, check.forward(cfg, plan))
  assert routers == ['decoder_00:4+2:2', 'decoder_01:4+2:2']
  about = recording.About('', 0, {}, '', routers, 2, {})
  assert recording.experts(about, 'decoder') == [4, 4] and recording.experts(about, 'encoder') == []
