"""The trainer on images in noise: a run and its continuation, on one device and on eight, in microbatches."""

import json

import jax
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.train import loop

TINY = ('model.d_model=16', 'model.num_heads=1', 'model.head_dim=16', 'train.steps=6', 'train.log_every=2',
        'train.stats_every=6', 'eval.every=6', 'eval.batches=1', 'checkpoint.every=3', 'train.batch_size=32',
        'eval.batch_size=32')
NAMES = {'switch_dit/digits:smoke': ('blocks.m.around.layer.experts.d_ff=16', 'blocks.m.d_ff=16',
                                     'blocks.m.around.layer.executor=einsum'),
         'promoe/digits:smoke': ('blocks.m.inner.experts.d_ff=16', 'blocks.d.d_ff=16',
                                 'blocks.m.inner.executor=einsum')}


def load(name, *overrides):
  return experiment.load(name, [*TINY, *NAMES[name], *overrides])[0]


def train(cfg, path, devices):
  assert loop.train(cfg, path, devices=jax.devices()[:devices]) == 0
  return json.loads((path / 'DONE').read_text())


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_run_its_continuation_and_many_devices(name, tmp_path):
  whole = train(load(name), tmp_path / 'whole', 1)
  assert {'loss/mse', 'eval/mse_0', 'eval/mse_9'} <= set(whole) and whole['eval/loss'] > 0
  assert set(whole) & {'loss/aux_diffusion_prior', 'loss/aux_contrastive'}
  train(load(name, 'train.steps=3'), tmp_path / 'parts', 1)
  again = train(load(name), tmp_path / 'parts', 1)
  assert {key: again[key] for key in whole if 'eval/' in key} == {
      key: value for key, value in whole.items() if 'eval/' in key}
  many = train(load(name, 'train.microbatches=2'), tmp_path / 'many', 8)
  for key in whole:
    if key.startswith(('loss/', 'eval/')):
      assert many[key] == pytest.approx(whole[key], rel=2e-4, abs=1e-6), key


@pytest.mark.parametrize('override, said', [
    ('data.image_size=6', 'images of 6 x 6 x 1 for a model of 8 x 8 x 1; set data.image_size=8'),
    ('model.vocab_size=9', "model.vocab_size=9, but data.task='digits' has 10 ids"),
    ('model.variance=False', 'loss.variance=True, and the model gives 1 numbers for a pixel of 1; nearest'),
    ('loss.steps=8', 'loss.steps=8: the schedule .linear. of so few steps'),
    ('data.objective=classification', "model.name='dit' predicts noise, and the targets of"),
    ('losses.contrastive=(1.0,"mean")', "no layer reports 'contrastive'")])
def test_mistakes_are_found_before_anything_is_written(override, said, tmp_path):
  with pytest.raises(errors.UserError, match=said) as caught:
    loop.train(load('switch_dit/digits:smoke', override), tmp_path / 'run')
  assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()
