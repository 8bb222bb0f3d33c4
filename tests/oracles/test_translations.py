"""Translations of options that few recorded cases have, against values worked by hand or another route."""

import json

import cases
import check_backbone_train
import check_switch_models
import check_unified_scaling_laws
import numpy as np
import pytest


def case_of(folder, method, kind, config, tolerance=1e-5, **arrays):
  """Returns the Header of a case written into `folder`."""
  info = dict(method=method, kind=kind, name='made', config=config,
              tolerance=dict(integers='exact', floats=dict(rtol=tolerance, atol=1e-6)))
  (folder / 'made.json').write_text(json.dumps(info))
  np.savez(folder / 'made.npz', **arrays)
  return cases.find(folder)[0]


@pytest.mark.parametrize('layers, step, expected', [
    (4, 1, 'eeee'), (4, 2, 'dede'), (5, 3, 'dedde'), (7, 4, 'deddded'),
    (3, 0, 'ddd'), (1, 2, 'd')])
def test_sparse_layers_of_a_step(layers, step, expected):
  assert check_switch_models.letters(layers, step, 'e') == expected


def test_steps_are_stated_or_made_of_the_numbers_of_layers():
  c = dict(num_layers=6, num_decoder_layers=3, num_sparse_encoder_layers=2, num_sparse_decoder_layers=0)
  assert check_switch_models.steps(c) == [3, 3]
  assert check_switch_models.steps(c | dict(decoder_sparse_step=1)) == [3, 1]


SEGMENTS = np.array([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]])
TARGETS = np.array([[3, 1, 2, 4, 0], [1, 2, 2, 0, 0]], np.int32)


@pytest.mark.parametrize('factor, arrays, weights, divisor', [
    (None, {}, [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], 1), (4.0, {}, [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], 4),
    ('NUM_REAL_TARGET_TOKENS', {}, [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], 7),
    ('NUM_TOTAL_TARGET_TOKENS', {}, [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], 10),
    ('AVERAGE_PER_SEQUENCE', {}, [[1 / 4] * 4 + [0], [1 / 3] * 3 + [0, 0]], 2),
    ('AVERAGE_PER_SEQUENCE', dict(segment_ids=SEGMENTS), [[1 / 2] * 4 + [0], [1 / 3] * 3 + [0, 0]], 3)])
def test_normalised_losses(tmp_path, factor, arrays, weights, divisor):
  logits = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
  log_z = np.log(np.exp(logits).sum(-1))
  z, nll = 0.1 * log_z ** 2, log_z - np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
  weights = np.array(weights, np.float32)
  probs, right = np.exp(logits - log_z[..., None]), np.eye(6)[TARGETS]
  grad = (probs - right + 0.2 * log_z[..., None] * probs) * weights[..., None] / divisor
  header = case_of(
      tmp_path, 'backbone', 'cross_entropy_z_loss', dict(z_loss=0.1, label_smoothing=0.0,
                                                         loss_normalizing_factor=factor), tolerance=1e-4,
      logits=logits, targets=TARGETS, weight_sum=weights.sum(), z_loss=np.sum(z * weights) / divisor,
      loss=np.sum((nll + z) * weights) / divisor, grad_logits=grad, **arrays)
  cases.run(header)


def test_an_unknown_normalisation_is_named(tmp_path):
  header = case_of(tmp_path, 'backbone', 'cross_entropy_z_loss', dict(loss_normalizing_factor='NUM_TOKENS'),
                   targets=TARGETS, logits=np.zeros((2, 5, 6), np.float32))
  with pytest.raises(AssertionError, match="loss_normalizing_factor='NUM_TOKENS'"):
    check_backbone_train.cross_entropy_z_loss(cases.Case(header.path))


def test_adafactor_without_factors_scale_or_clipping(tmp_path):
  """One step from zero moments is g / |g| (decay 0), times the rate; with decay of the weights by rate^2."""
  p, g = np.full((8, 8), 2.0, np.float32), np.full((8, 8), -3.0, np.float32)
  config = dict(logical_axes=dict(w=['embed', 'mlp']), learning_rates=[0.5], min_dim_size_to_factor=4,
                factored=False, multiply_by_parameter_scale=False, clipping_threshold=None,
                weight_decay_rate=0.1, weight_decay_rate_lr_exponent=2.0)
  header = case_of(tmp_path, 'backbone', 'adafactor_step', config, **{
      'param0:w': p, 'grad0:w': g, 'param1:w': (1 - 0.1 * 0.25) * p + 0.5, 'state:w:v': g ** 2})
  cases.run(header)


def test_laws_in_natural_logarithms():
  case = cases.Case.__new__(cases.Case)
  case.method, case.name = 'unified_scaling_laws', 'made'
  k, n, e = dict(a=-0.1, b=-0.2, c=0.01, d=2.0), 1e8, 16.0
  loss = lambda k, log, base: base ** (
      k['a'] * log(n) + k['b'] * log(e) + k['c'] * log(n) * log(e) + k['d'])
  case.config = dict(log_base='e')
  decimal = check_unified_scaling_laws._decimal(case, k)
  np.testing.assert_allclose(loss(decimal, np.log10, 10), loss(k, np.log, np.e), rtol=1e-12)
