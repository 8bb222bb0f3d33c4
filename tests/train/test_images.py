"""The trainer on images: the same loop, other batches; accuracy is the result, there are no bits per byte."""

import json

import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.train import check
from stmoe.train import loop

TINY = ('model.d_model=16', 'model.num_heads=1', "model.layers=(('m',1),)", 'model.pooling=mean',
        'blocks.m.executor=einsum', 'blocks.m.group_size=16', 'blocks.m.experts.d_ff=16',
        'blocks.m.router.num_experts=4', 'train.steps=12', 'train.batch_size=16', 'train.microbatches=2',
        'train.log_every=4', 'train.stats_every=12', 'eval.every=12', 'eval.batch_size=16', 'eval.batches=2',
        'checkpoint.every=6', 'loss.sigmoid=True')


def load(name, *overrides):
  return experiment.load(name, overrides)[0]


def final(path):
  return json.loads((path / 'DONE').read_text())


@pytest.mark.slow
def test_a_run_on_images_and_its_continuation(tmp_path):
  """With microbatches, sigmoid loss and a checkpoint, from which the rest leads to the same end."""
  cfg = load('vmoe/digits:smoke', *TINY)
  assert loop.train(cfg, tmp_path / 'whole') == 0
  values = final(tmp_path / 'whole')
  assert 0 < values['eval/accuracy'] < 1 and values['eval/tokens'] == 32 and values['tokens'] == 12 * 16
  assert 'eval/bits_per_byte' not in values and values['loss/ce'] < 10 * 0.7
  assert {'loss/aux_importance', 'loss/aux_load', 'loss/aux_gshard', 'moe/drop_frac'} <= set(values)
  lines = [json.loads(line) for line in (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()]
  assert lines[-1]['loss/ce'] < lines[0]['loss/ce']
  assert loop.train(load('vmoe/digits:smoke', *TINY, 'train.steps=6'), tmp_path / 'parts') == 0
  assert loop.train(cfg, tmp_path / 'parts') == 0
  assert final(tmp_path / 'parts')['eval/loss'] == values['eval/loss']


@pytest.mark.slow
@pytest.mark.parametrize('method', ['vmoe', 'soft_moe'])
def test_digits_are_learned(method, tmp_path):
  cfg = load(f'vmoe/digits:method={method}', 'train.steps=300', 'eval.every=300', 'checkpoint.every=300')
  assert loop.train(cfg, tmp_path) == 0
  assert final(tmp_path)['eval/accuracy'] > 0.7                      # chance: 0.1


@pytest.mark.parametrize('override, said', [
    ('model.vocab_size=9', "model.vocab_size=9, but data.task='digits' has 10 ids"),
    ('data.image_size=6', 'images of 6 x 6 x 1 for a model of 8 x 8 x 1; set data.image_size=8'),
    ('data.channels=3', 'data.channels=1'),
    ('model.patch_size=3', 'patch_size 3 does not divide image_size 8; nearest: 1, 2, 4'),
    ('loss.z=0.1', 'loss.sigmoid=True has no softmax for loss.z=0.1'),
    ('blocks.m.group_size=33', 'group_size 33 does not divide the 8 x 16 = 128 tokens'),
    ('losses.z=(0.1,"mean")', "no layer reports 'z'")])
def test_mistakes_are_found_before_anything_is_written(override, said, tmp_path):
  with pytest.raises(errors.UserError, match=said) as caught:
    loop.train(load('vmoe/digits:smoke', *TINY, override), tmp_path / 'run')
  assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()


def test_shapes_of_batches():
  cfg = load('vmoe/digits:smoke')
  found = {name: (s.shape, s.dtype.name) for name, s in check.batch_shapes(cfg, 4).items()}
  assert found == dict(image=((4, 8, 8, 1), 'float32'), labels=((4, 1), 'int32'),
                       weights=((4, 1), 'int32'))
