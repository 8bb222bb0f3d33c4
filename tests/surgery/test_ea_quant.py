"""Quantised experts: scales change no function, s is the experts' own, routers keep their choices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import ea_quant
from stmoe.surgery import smoothing
from stmoe.surgery import sparse
from tests.models import tiny
from tests.surgery import trained

D = tiny.SHAPES['d_model']
GLU = dict(name='glu', d_ff=6, activation='silu')
RELU = trained.MLP | dict(activation='relu')
HIGH = np.ones((4, 6)) + 9 * np.eye(4, 6)                            # an outlier in a channel of each expert
SEEN = dict(even_hidden=np.stack([HIGH, np.ones((4, 6))]), largest_hidden=np.ones((2, 4, 6)),
            first_hidden=np.full((2, 4, 6), 7.0),
            largest_inputs=np.linspace(0.5, 4, 4 * D).reshape(4, D), largest_input=np.full(D, 4.0), tokens=9,
            coactivation=np.diag([9, 5, 4, 0]), probabilities=np.array([4, 2, 2, 1]),
            first_inputs=np.random.default_rng(0).normal(size=(30, D)))
STATISTICS = trained.calibration(**SEEN)


@pytest.mark.parametrize('experts, scaled', [
    (GLU, ['wg', 'wo']), pytest.param(RELU, ['bi', 'wi', 'wo'], marks=pytest.mark.slow), (trained.MLP, [])])
def test_without_codes_nothing_changes(experts, scaled):
  cfg = trained.config(experts)
  params = trained.params(cfg)
  made, changes = ea_quant.operate(params, cfg, STATISTICS, keep=1.0)
  assert not changes
  bank, old = (p['decoder']['layers'][1]['layer']['experts'] for p in (made, params))
  assert sorted(name for name in bank if (bank[name] != old[name]).any()) == scaled
  if scaled:                             # by hand: 10^0.7 in the outlier's channel
    np.testing.assert_allclose(bank['wo'][1] / old['wo'][1], np.where(np.arange(6) == 1, 10 ** 0.7, 1)[
        :, None] * np.ones(D), rtol=1e-5)
    np.testing.assert_allclose(trained.logits(cfg, made), trained.logits(cfg, params), rtol=1e-4, atol=1e-4)


def test_the_grids_of_a_second_router_compile_nothing():
  x = SEEN['first_inputs']
  first, second, x = (jnp.asarray(a, jnp.float32) for a in (x[:4], x[4:8], x))
  search = lambda w: ea_quant.searched(w, x, 4, 2, ('kl',))
  search(first)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
      lambda event, seconds, **_: compiled.append(event) if 'backend_compile' in event else None)
  search(second)
  assert not compiled


def test_an_expert_without_a_token_is_looked_at_on_the_first_ones():
  own = np.stack([HIGH, np.ones((4, 6))])
  own[:, 3] = -np.inf
  ends = ea_quant._ends(own, np.full((2, 4, 6), 7.0))
  assert (ends[:, 3] == 7).all() and (ends[:, :3] == own[:, :3]).all()


@pytest.mark.slow
def test_codes_of_eight_bits_are_near_and_of_three_are_not():
  cfg = trained.config(GLU)
  params = trained.params(cfg)
  before, error = trained.logits(cfg, params), {}
  for bits in (8, 3):
    made, changes = ea_quant.operate(params, cfg, STATISTICS, bits=bits)
    assert changes['blocks.m.experts'] == dict(
        name='packed', inner=GLU, bits=bits, group=None, kind='affine', activation_bits=bits, smooth=True)
    layer = made['decoder']['layers'][1]['layer']
    assert layer['experts']['codes']['wi']['planes'].shape == (4, bits, -(-D * 6 // 8))
    assert set(layer['experts']) == {'codes', 'smooth'}
    error[bits] = np.abs(trained.logits(sparse.changed(cfg, changes), made) - before).mean()
  assert 0 < error[8] < 0.1 * error[3] and error[8] < 0.02 * np.abs(before).mean()


def test_the_scale_of_inputs_and_what_reads_them():
  cfg = trained.config(GLU, layers=(('dm', 1),))
  [layer] = sparse.found(cfg)
  bank = layer.arrays(trained.params(cfg), 'experts')
  scale = smoothing.of_inputs(layer, bank, None, SEEN, 'max', 0.6, False)
  largest = np.maximum(np.abs(bank['wi',]).max(-1), np.abs(bank['wg',]).max(-1))
  np.testing.assert_allclose(scale, (SEEN['largest_inputs'] ** 0.6 / largest ** 0.4).max(0), rtol=1e-5)
  made = smoothing.multiplied(layer, cfg, bank, scale)               # asks whether that is the same
  assert [path for path in bank if (made[path] != bank[path]).any()] == [('wg',), ('wi',)]


@pytest.mark.parametrize('loss', ['kl', 'linear', 'whole'])
def test_a_router_is_rounded_to_its_grid(loss):
  cfg = trained.config(GLU, layers=(('dm', 1),))
  params = trained.params(cfg)
  made, _ = ea_quant.operate(params, cfg, STATISTICS, smooth='none', down=False, router=loss, router_bits=2)
  w, old = (np.asarray(p['decoder']['layers'][1]['layer']['router']['w']) for p in (made, params))
  assert all(len(np.unique(column)) <= 4 for column in w.T) and not (w == old).any(1).all()
  kept, _ = ea_quant.operate(params, cfg, trained.none, smooth='none', down=False, router_bits=None)
  np.testing.assert_array_equal(kept['decoder']['layers'][1]['layer']['router']['w'], old)


@pytest.mark.parametrize('experts, fields, words', [
    (GLU, dict(keep=0.5), 'keep=0.5: 16 bits of 32; codes have 2 to 8; nearest: keep=0.25'),
    (GLU, dict(group=5), 'group=5 does not divide'),
    (dict(name='residual', d_ff=6), {}, 'nearest: smooth=none')])
def test_mistakes_are_one_line(experts, fields, words):
  cfg = trained.config(experts, layers=(('dm', 1),))
  with pytest.raises(errors.UserError, match=words) as caught:
    ea_quant.operate(trained.params(cfg), cfg, STATISTICS, **fields)
  assert '\n' not in str(caught.value)
