"""`stmoe routing`: its numbers are those of changed routers in evaluation; mistakes are one line."""

import itertools
import json
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import modules
from stmoe.analysis.routing import diagnosed
from stmoe.answer import interactive
from stmoe.answer import routing
from stmoe.data import batches as pipeline
from stmoe.decode.strategies import contrast
from stmoe.runs import records
from stmoe.train import loop
from tests.train import tiny_run

TOP2 = dict(name='st_moe', num_experts=4, k=2, capacity_factor=(2.0, None))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('routing')
  cfg = tiny_run.config(tiny_run.write_corpus(folder), **{
      'blocks.m.router': TOP2, 'model.layers': (('m', 2),), 'train.steps': 4, 'checkpoint.every': 2})
  loop.train(cfg, folder / 'run', devices=jax.devices()[:1])
  return folder / 'run'


@pytest.mark.slow
def test_its_numbers_are_those_of_changed_models(command, run, tmp_path, one_device):
  (tmp_path / 'a.txt').write_text('4 squared is 16.\n' * 9)
  code, out, _ = command('routing', run, '--against', 'all', '--domain', f'sums={tmp_path / "a.txt"}',
                         '--batches', 2, '--temperatures', '1,3')
  assert code == 0 and 'without the first choice' in out and '\nsums' in out
  found = records.routing(run)
  assert found['step'] == 4 and found['notes'] == [] and list(found['layers']) == ['decoder_00', 'decoder_01']
  assert found['loss'] == pytest.approx(records.done(run)['eval/loss'], rel=1e-6)
  assert found['temperatures']['1'] == 0 and found['temperatures']['3'] != 0
  assert found['dropped']['1'] == pytest.approx(_loss_by_ranks(run, (1, 2)) - found['loss'], abs=1e-5)
  for name, layer in found['layers'].items():
    compared = found['against']['2'][name]
    assert 0 < compared['overlap'] < 1 and compared['change'] == 1 - compared['overlap']
    assert layer['choices'] == 2 and 0 < layer['margin'] < 1 and -1 <= layer['output_similarity'] <= 1
    assert math.isclose(sum(layer['load']), 1) and 0 < layer['probability_margin'] < layer['margin']
    assert np.shape(layer['coactivation']) == (4, 4) and 0 < abs(layer['anisotropy']) < 0.5
  assert 'overlap_before' in found['layers']['decoder_01']
  _shown(command, run, tmp_path)


def _shown(command, run, folder):
  """The report shows what the command wrote; a damaged file is named."""
  assert (run / 'plots' / 'routing_depth.png').is_file()
  assert command('report', run, '-o', folder / 'page.html', '--routed', '0')[0] == 0
  page = (folder / 'page.html').read_text()
  assert 'What routers do' in page and 'allocation' in page and 'routing coactivation' in page
  whole = json.loads((run / records.ROUTING).read_text())
  for text in ('{', '[]', '{"step": 1}', json.dumps(whole | dict(layers={'a': 3}))):
    (folder / records.ROUTING).write_text(text)
    with pytest.raises(errors.UserError, match='routing.json'):
      records.routing(folder)


def _loss_by_ranks(run, ranks):
  """Mean loss over the evaluation batches, by hand, of the model that routes by other ranks."""
  model, cfg, _ = interactive.opened(run)
  model = contrast.routed_by(model, ranks)
  batches = itertools.islice(pipeline.eval_batches(cfg, opened=pipeline.source(cfg, run)), cfg.eval.batches)
  total = count = 0.0
  for batch in batches:
    logits, _ = jax.jit(lambda model, batch: model(batch))(model, batch)
    targets, weights = batch['decoder_target_tokens'], batch['decoder_loss_weights']
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    total, count = total + (loss * weights).sum(), count + weights.sum()
  return float(total / count)


def test_without_a_first_choice_needs_a_known_number_of_choices():
  """SMoE-Dropout has as many as schedule and evaluation say: one other is not all but the first."""
  def model(router):
    fields = dict(name='lm', vocab_size=259, d_model=8, num_heads=2, head_dim=4, layers=(('m', 1),))
    block = dict(layer='moe', router=dict(name=router, num_experts=4), experts=dict(name='mlp', d_ff=8))
    return lookup.recipe('model', fields)(blocks=dict(m=block), rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match='routers/smoe_dropout.py does not say how many experts'):
    routing._without(model('smoe_dropout'), 1)
  router = next(iter(modules.sparse(routing._without(model('st_moe'), 1)))).router
  assert router.ranks == (1, 2)


@pytest.mark.parametrize('words, said', [
    (['--against', 'first'], "--against=first"), (['--temperatures', '0'], 'above 0'),
    (['--domain', 'prose'], 'write NAME=FILE'), (['--domain', 'prose=nowhere.txt'], 'nowhere.txt'),
    (['--step', 3], 'step 3'), (['--against', 3], 'step 3'), (['--batches', 0], '--batches')])
def test_mistakes_are_one_line(command, run, words, said, one_device):
  code, _, err = command('routing', run, *words)
  assert code == 2 and said in err.splitlines()[-1]


def test_of_very_many_classes_the_frequent_ones_are_told(monkeypatch):
  monkeypatch.setattr(routing, 'KINDS', 2)
  probe = object.__new__(routing.Probe)
  probe.notes = []
  assert probe._most('labels', np.array([[7], [7], [3], [5], [5]])).tolist() == [5, 7]
  assert probe.notes == ['labels has 3 values, of which the 2 most frequent are domains']
  found = dict(layers=dict(encoder_00={}), domains={
      f'labels={i}': dict(encoder_00=dict(allocation_entropy=0.5)) for i in range(1000)})
  _, rows = diagnosed.domains(found)
  assert rows[-2:] == [['labels=39', '0.500'], ['and 960 more', '']] and len(rows) == 41


@pytest.mark.slow
def test_patches_of_images_are_told_by_class(command, mistake, tmp_path, one_device):
  """A V-MoE that drops choices. The last of its batches is not full: empty rows do not count."""
  folder, (images, batch) = tmp_path / 'run', (6, 4)
  pixels = np.random.default_rng(0).integers(0, 256, (2 * images, 4, 4), np.uint8)
  np.savez(tmp_path / 'images.npz', images=pixels, labels=np.arange(2 * images) % 3,
           split=np.repeat(['train', 'validation'], images))
  loop.train(experiment.load('vmoe/digits:experts=4,smoke', [
      'data.task=npz', f"data.files=('{tmp_path / 'images.npz'}',)", f'data.cache_dir={tmp_path}',
      'data.image_size=4', 'model.image_size=4', "model.layers=(('m',1),)", 'model.vocab_size=3',
      'model.d_model=8', 'model.num_heads=1', 'model.head_dim=8', 'blocks.m.experts.d_ff=8',
      'blocks.m.group_size=5', 'blocks.m.router.batch_priority=True',
      'blocks.m.router.capacity_factor=(0.5,0.5)', 'train.steps=1', 'train.batch_size=4', 'eval.every=1',
      f'eval.batch_size={batch}', 'checkpoint.every=1'])[0], folder, devices=jax.devices()[:1])
  code, out, _ = command('routing', folder, '--temperatures', '2')
  assert code == 0 and '\nlabels=2' in out
  found = records.routing(folder)
  layer, classes = found['layers']['encoder_00'], found['domains']
  assert found['tokens'] == images * 5 and [*classes] == ['labels=0', 'labels=1', 'labels=2']
  assert found['loss'] == pytest.approx(records.done(folder)['eval/loss'], rel=1e-6)
  assert 0 < layer['choices'] < 2 and 0 <= layer['without'] < 1
  assert len(layer['places']) == 5 and np.mean(layer['places']) == pytest.approx(layer['choices'])
  by_class = [inside['encoder_00'] for inside in classes.values()]
  assert np.mean([one['without'] for one in by_class]) == pytest.approx(layer['without'])
  assert all(sum(one['load']) == pytest.approx(1) for one in by_class)
  assert (folder / 'plots/routing_domains.png').is_file()
  (tmp_path / 'a.txt').write_text('a')
  assert "data.objective='classification', and reads no text" in mistake(
      'routing', folder, '--domain', f'a={tmp_path / "a.txt"}')


def test_a_run_without_choices_is_told_so(mistake, tmp_path, one_device):
  cfg = tiny_run.config(tiny_run.write_corpus(tmp_path), **{
      'model.layers': (('d', 1),), 'losses': {}, 'train.steps': 1})
  loop.train(cfg, tmp_path / 'run', devices=jax.devices()[:1])
  assert 'no sparse layer in a stack whose tokens choose experts' in mistake('routing', tmp_path / 'run')
