"""Zeros in experts' matrices: the least inputs of every output, by layer or by outliers."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import wanda
from tests.surgery import trained

D, F = 8, 6
GLU = dict(name='glu', d_ff=F)


def calibration(calls=(2, 2, 2, 0), seed=0):
  rng = np.random.default_rng(seed)
  return trained.calibration(calls=calls, input_squares=rng.random((4, D)),
                             own_hidden_squares=rng.random((4, F)))


def bank(params):
  return params['decoder']['layers'][1]['layer']['experts']


def test_the_least_inputs_of_every_output_go_but_not_of_an_expert_that_saw_nothing():
  cfg = trained.config(GLU, layers=(('dm', 1),))
  params, statistics = trained.params(cfg), calibration()
  made, changes = wanda.operate(params, cfg, statistics, keep=0.5)
  assert changes == {}
  for name, item in (('wi', 'input_squares'), ('wg', 'input_squares'), ('wo', 'own_hidden_squares')):
    now, was = np.asarray(bank(made)[name]), np.asarray(bank(params)[name])
    score = np.abs(was) * np.sqrt(statistics(item)['decoder_01'][item])[..., None]
    keep = score > np.sort(score, 1)[:, was.shape[1] // 2 - 1:was.shape[1] // 2]
    keep[3] = True
    np.testing.assert_array_equal(now, np.where(keep, was, 0))


def test_patterns_and_outliers():
  cfg = trained.config(layers=(('dm', 2),))
  params = trained.params(cfg)
  made, _ = wanda.operate(params, cfg, calibration((1,) * 4), keep=0.5, block=2)
  wi = np.asarray(bank(made)['wi']).reshape(4, D // 2, 2, F)
  assert ((wi == 0).sum(2) == 1).all()
  big = np.array(bank(params)['wi'])
  big[0, 0] *= 50                                                    # outliers in the first layer
  bank(params)['wi'] = big
  made, _ = wanda.operate(params, cfg, calibration((1,) * 4), keep=0.5, allocation='owl', spread=0.25)
  zeros = [float((np.asarray(made['decoder']['layers'][block]['layer']['experts']['wi']) == 0).mean())
           for block in (1, 3)]
  assert zeros == [0.25, 0.75]


@pytest.mark.parametrize('experts, fields, words', [
    (GLU, dict(keep=0.4, block=4), ['keep=0.4 of block=4', 'nearest: keep=0.5']),
    (GLU, dict(block=2, allocation='owl'), ['block=2', 'nearest: allocation=layer']),
    (GLU, dict(block=6), ['block=6 does not divide the 8 inputs', 'nearest: block=4']),
    (dict(name='lora', d_ff=6, rank=2), {}, ['.a is no matrix', "'mlp' or 'glu'"])])
def test_what_cannot_be_pruned_is_one_line(experts, fields, words):
  cfg = trained.config(experts, layers=(('dm', 1),))
  with pytest.raises(errors.UserError) as caught:
    wanda.operate(trained.params(cfg), cfg, calibration((1,) * 4), **fields)
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)
