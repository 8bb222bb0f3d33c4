"""What most tests of derived runs start from; a file with another start has its own fixture of that name."""

import jax
import pytest

from stmoe import experiment
from stmoe.train import loop
from tests.train import tiny_run


ONE = jax.devices()[:1]


@pytest.fixture(scope='module')
def start(corpus, tmp_path_factory):
  """A run of a decoder-only model, trained for 2 steps."""
  path = tmp_path_factory.mktemp('start') / 'run'
  changed = {'train.steps': 2, 'eval.every': 2, 'checkpoint.every': 2, 'eval.batches': 1}
  assert loop.train(tiny_run.config(corpus, **changed), path, 'tiny', ONE) == 0
  return path


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
  """A run of a Vision Transformer on digits of 8 x 8 pixels, with averages, trained for 1 step."""
  path = tmp_path_factory.mktemp('pictures') / 'run'
  cfg, name = experiment.load('vmoe/digits:smoke,method=vit', [f'--config.{text}' for text in (
      'model.layers=(("d",1),)', 'model.d_model=8', 'model.num_heads=2', 'model.head_dim=4',
      'model.representation=4', 'blocks.d.d_ff=8', 'train.steps=1', 'train.batch_size=8', 'eval.batch_size=8',
      'eval.batches=1', 'optimizer.average=0.5', 'data.crop=1.0')])
  assert loop.train(cfg, path, name, ONE) == 0
  return path
