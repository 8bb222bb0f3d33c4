"""`stmoe sample` on a run: what it writes, the same samples in other batches, its figure, its mistakes."""

import json

import jax
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import experiment
from stmoe import files
from stmoe.analysis.figures import noise_levels
from stmoe.runs import read as runs
from stmoe.train import loop
from stmoe.train import state as states


@pytest.mark.slow
def test_the_command_on_a_run(command, mistake, tmp_path, monkeypatch):
  cfg = experiment.load('promoe/digits:smoke', ['train.steps=4', 'train.log_every=2', 'eval.every=4',
                                                'checkpoint.every=4', 'mesh.data=1'])[0]
  path, out = tmp_path / 'run', tmp_path / 'a.png'
  loop.train(cfg, path, devices=jax.devices()[:1])
  one = lambda sizes, devices=None: axes.make_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(states, 'make_mesh', one)
  code, said, _ = command('sample', path, '--num', 20, '--steps', 3, '--out', out, '--json')
  score = json.loads(said)
  assert code == 0 and score['step'] == 4 and score['accuracy_real'] > 0.9
  arrays = files.read_arrays(out.with_suffix('.npz'))
  assert arrays['images'].shape == (20, 8, 8, 1) and arrays['label'].tolist() == [*range(10)] * 2
  level, loads = noise_levels.read(path / noise_levels.FILE)
  np.testing.assert_allclose(level, [1, 2 / 3, 1 / 3], rtol=1e-6)
  assert list(loads) == ['encoder_01'] and (loads['encoder_01'].sum(1) == 20 * 16).all()
  assert list(noise_levels.draw(runs.read(path))) == ['noise_levels']
  assert command('sample', path, '--num', 20, '--steps', 3, '--out', out,
                 '--config.eval.batch_size=4')[0] == 0
  again = files.read_arrays(out.with_suffix('.npz'))
  assert np.abs(arrays['images'].astype(int) - again['images']).max() <= 1
  files.write_arrays(path / noise_levels.FILE, dict(level=level))
  with pytest.raises(errors.UserError, match='noise_levels.npz: does not hold levels'):
    noise_levels.draw(runs.read(path))
  assert 'target Flow has none of that name (it has: euler)' in mistake('sample', path, '--sampler', 'ddim')
  assert 'the model knows 10 classes' in mistake('sample', path, '--label', 10)
  assert 'nearest: a.png' in mistake('sample', path, '--out', 'a.jpg')
  assert 'expected a whole number of at least 1' in mistake('sample', path, '--steps', 0)
