"""Imported sparse models lose half of their experts and go back to their own format, and open there again."""

import json

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.checkpoints import stored
from stmoe.derive import compress
from stmoe.derive import convert
from stmoe.interop import tensors as files
from stmoe.runs import directory as rundir
from tests.interop import runs
from tests.train import tiny_run

COUNTS = ('num_local_experts', 'num_experts', 'n_routed_experts', 'moe_num_experts')
BLIND = ('prune:keep=0.5,by=magnitude', 'prune:keep=0.5,by=random,seed=3')           # look at no data
SEEING = ('prune:keep=0.5,by=usage', 'prune:keep=0.5,by=reap', 'uncurl:keep=0.5')


def experts(folder):
  """Returns the numbers of experts in config.json of a folder."""
  hf = json.loads((folder / 'config.json').read_text())
  return [hf[key] for key in COUNTS if hf.get(key)]


def halved(source, method, path, overrides=()):
  """Asserts that the model of a folder, imported, compressed and exported, opens with half of its experts."""
  convert.read(source, path / 'run')
  sections = [layer for block in rundir.load(path / 'run').blocks.values() for layer in lookup.nested(block)]
  if not any('experts' in layer for layer in sections):
    pytest.skip('has no experts')
  try:
    compress.compress(path / 'run', method, path / 'half', overrides, batches=2, devices=jax.devices()[:1])
  except errors.UserError as error:
    assert '\n' not in str(error) and not (path / 'half').exists()
    pytest.skip(f'refused: {error}')
  convert.write(path / 'half', path / 'out')
  assert {2 * number for number in experts(path / 'out')} == {*experts(source)} != set()
  convert.read(path / 'out', path / 'again')
  arrays = lambda run: stored.Reader(path / run / 'checkpoints', 0).inventory
  parameters = lambda run: {name: one for name, one in arrays(run).items() if name.startswith('params/')}
  assert parameters('half') == parameters('again')


@pytest.mark.slow
@pytest.mark.parametrize('method', BLIND)
def test_half_of_the_experts_by_a_method_without_data(case, method, tmp_path):
  halved(case, method, tmp_path)
  with np.load(case / 'expected.npz') as arrays:
    inputs = runs.batch(dict(arrays))
  forward = jax.jit(lambda m, b: m(b)[0])
  logits = [np.asarray(forward(runs.load(tmp_path / run)[1], inputs)) for run in ('run', 'half', 'again')]
  np.testing.assert_array_equal(logits[1], logits[2])
  assert np.abs(logits[0] - logits[1]).max() > 1e-3 and np.isfinite(logits[1]).all()
  before, after = files.tensors(case), files.tensors(tmp_path / 'out')
  stacked = [name for name, tensor in after.items() if before[name].shape != tensor.shape]
  # Experts with tensors of their own are experts of before; whatever has no experts is as it was.
  kept = {tensor.read().tobytes() for tensor in before.values()}
  assert all(tensor.read().tobytes() in kept for name, tensor in after.items() if name not in stacked)
  assert stacked and len(after) <= len(before)


@pytest.mark.slow
@pytest.mark.parametrize('method', SEEING)
def test_half_of_the_experts_by_a_method_that_looks_at_data(text_case, method, tmp_path):
  (tmp_path / 'a.txt').write_text(tiny_run.TEXT)
  halved(text_case, method, tmp_path, [f'--config.data.files={tmp_path}/a.txt', '--config.train.batch_size=2',
                                   '--config.data.length=64', f'--config.data.cache_dir={tmp_path}/cache'])
