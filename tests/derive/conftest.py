"""What most tests of derived runs start from; a file with another start has its own fixture of that name."""

import jax
import pytest

from stmoe.train import loop
from tests.train import tiny_run


@pytest.fixture(scope='module')
def start(corpus, tmp_path_factory):
  """A run of a decoder-only model, trained for 2 steps."""
  path = tmp_path_factory.mktemp('start') / 'run'
  changed = {'train.steps': 2, 'eval.every': 2, 'checkpoint.every': 2, 'eval.batches': 1}
  assert loop.train(tiny_run.config(corpus, **changed), path, 'tiny', jax.devices()[:1]) == 0
  return path
