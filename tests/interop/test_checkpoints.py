"""Every tiny checkpoint under --checkpoints: the same outputs, routing and ids, and the same bytes back."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors

from stmoe.derive import convert
from stmoe.interop import tensors as files
from tests.interop import runs


@pytest.fixture(scope='session')
def imported(tmp_path_factory):
  """A function case -> (run directory, model), made once."""
  @functools.cache
  def make(case):
    target = tmp_path_factory.mktemp('imported') / case.name
    convert.read(case, target, say=print)
    return target, runs.load(target)[1]
  return make


@functools.cache
def expected(case):
  with np.load(case / 'expected.npz') as arrays:
    return dict(arrays)


def close(a, b):
  return np.abs(a - b) <= 1e-4 + 1e-4 * np.abs(b)


def test_logits_and_cross_entropy(case, imported):
  want, (_, model) = expected(case), imported(case)
  inputs = runs.batch(want)
  logits = np.asarray(jax.jit(lambda m, b: m(b)[0])(model, inputs))
  real = np.asarray(inputs['decoder_segment_ids']) > 0
  assert close(logits, want['logits'])[real].all(), np.abs(logits - want['logits'])[real].max()
  assert abs(cross_entropy(logits, want) - want['cross_entropy'][0]) <= 1e-4


def cross_entropy(logits, want):
  """The recorded mean: over all labels, or over next tokens that are not padding."""
  logp = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
  if 'labels' in want:
    return -np.take_along_axis(logp, want['labels'][..., None], -1).mean()
  ids, real = want['in_input_ids'][:, 1:], want['in_attention_mask'][:, 1:]
  return -(np.take_along_axis(logp[:, :-1], ids[..., None], -1)[..., 0] * real).sum() / real.sum()


def test_chosen_experts_and_dropped_tokens(case, imported):
  want, (_, model) = expected(case), imported(case)
  mask = {'enc_': want['in_attention_mask'] > 0, '': want['in_attention_mask'] > 0,
          'dec_': np.ones_like(want.get('in_decoder_input_ids', want['in_input_ids']), bool)}
  found = runs.choices(model, runs.batch(want))
  recorded = [(prefix, i) for prefix in ('enc_', 'dec_', '') for i in range(len(found))
              if any(f'{prefix}{name}_{i}' in want for name in ('expert', 'expert_index', 'combine'))]
  assert len(found) == len(recorded)
  for (prefix, i), layer in zip(recorded, found):
    for b, t in np.argwhere(mask[prefix]):
      taken = dict(layer[b][t])
      if f'{prefix}combine_{i}' in want:                             # 0: not chosen, or dropped
        weights = [taken.get(e, 0) for e in range(want[f'{prefix}combine_{i}'].shape[-1])]
        np.testing.assert_allclose(weights, want[f'{prefix}combine_{i}'][b, t], rtol=1e-4, atol=1e-5)
      elif prefix:
        kept = want[f'{prefix}kept_{i}'][b, t]
        assert list(taken) == ([want[f'{prefix}expert_{i}'][b, t]] if kept else []), (prefix, i, b, t)
      else:
        assert sorted(taken) == want[f'expert_index_{i}'][b, t].tolist(), (i, b, t)
        weights = [taken[e] for e in sorted(taken)]
        np.testing.assert_allclose(weights, want[f'expert_weight_{i}'][b, t], rtol=1e-4, atol=1e-5)


def test_greedy_ids(case, imported):
  want, (_, model) = expected(case), imported(case)
  np.testing.assert_array_equal(runs.greedy(model, want), want['greedy_ids'])


def test_cached_greedy_ids(case, imported):
  want, (_, model) = expected(case), imported(case)
  if any((kept == 0).any() for name, kept in want.items() if '_kept_' in name) or runs.of_the_batch(want):
    pytest.skip('tokens are dropped here, and never where they are decoded one by one')
  np.testing.assert_array_equal(runs.cached_greedy(model, want), want['greedy_ids'])


def test_export_has_the_same_bytes(case, imported, tmp_path):
  path, _ = imported(case)
  convert.write(path, tmp_path / 'out')
  old, new = files.tensors(case), files.tensors(tmp_path / 'out')
  assert {name: (t.dtype, t.shape) for name, t in new.items()} == {
      name: (t.dtype, t.shape) for name, t in old.items()}
  assert all(new[name].read().tobytes() == t.read().tobytes() for name, t in old.items())
  assert (tmp_path / 'out' / 'config.json').read_bytes() == (case / 'config.json').read_bytes()
  with safetensors.safe_open(tmp_path / 'out' / 'model.safetensors', framework='numpy') as theirs:
    assert set(theirs.keys()) == set(old) and theirs.metadata() == {'format': 'pt'}
    for name in old:
      np.testing.assert_array_equal(theirs.get_tensor(name), old[name].read())


def test_description_of_the_family_means_the_same_model(case, imported, tmp_path):
  path, _ = imported(case)
  copy = tmp_path / 'run'
  copy.mkdir()
  for name in ('config.json', 'checkpoints'):                        # without what the import remembers
    (copy / name).symlink_to(path / name)
  family = json.loads((path / 'imported.json').read_text())['family']
  convert.write(copy, tmp_path / 'out', to=family)
  convert.read(tmp_path / 'out', tmp_path / 'again')
  _, model = runs.load(pathlib.Path(tmp_path / 'again'))
  want = expected(case)
  logits = np.asarray(jax.jit(lambda m, b: m(b)[0])(model, runs.batch(want)))
  real = np.asarray(runs.batch(want)['decoder_segment_ids']) > 0
  assert close(logits, want['logits'])[real].all()
