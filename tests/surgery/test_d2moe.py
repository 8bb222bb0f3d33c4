"""Nested codes: shorter ones are prefixes, hot experts have more planes, gates choose among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import assignment
from stmoe.core.units import codes
from stmoe.surgery import d2moe
from stmoe.surgery import sparse
from tests.routers import test_wrappers as wrapped
from tests.surgery import trained

GLU = dict(name='glu', d_ff=6, activation='silu')
LOAD = trained.calibration(load=[1, 9, 2, 5])


@pytest.fixture(scope='module')
def nested():
  """(config and parameters before, the same after) with 3 bits on average of 2 to 4."""
  cfg = trained.config(GLU)
  params = trained.params(cfg)
  made, changes = d2moe.operate(params, cfg, LOAD, group=2)
  return cfg, params, sparse.changed(cfg, changes), made


def layer_of(params, block=1):
  return params['decoder']['layers'][block]['layer']


def test_hot_experts_have_more_planes_and_gates_choose(nested):
  cfg, params, new, made = nested
  assert layer_of(made)['router']['most'].tolist() == [0, 2, 0, 2]   # 12 planes: 2, 4, 2 and 4
  assert new.blocks.m.experts.widths == (2, 3, 4)
  assert new.blocks.m.router.inner.to_dict() == cfg.blocks.m.router.to_dict()
  after = trained.logits(new, made)
  assert 0 < np.abs(after - trained.logits(cfg, params)).mean() < np.abs(after).mean()


def test_with_all_planes_and_no_thresholds_all_bits_are_read(nested):
  """Then the model is the old one with the values of whole codes for weights."""
  cfg, params, new, made = nested
  new = sparse.changed(new, {'blocks.m.router.thresholds': (0.0, 1e-9)})
  most = {('decoder', 'layers', block, 'layer', 'router', 'most'): jnp.full(4, 2, jnp.int32)
          for block in (1, 3)}
  whole = {}
  for layer in sparse.found(cfg):
    for (name,), array in layer.arrays(params, 'experts').items():
      stored = codes.encode(array, 4, 2, 'nested')
      groups = array.reshape(4, -1, 2, array.shape[-1])
      q = codes.code(groups, stored['scale'][:, :, None], stored['zero'][:, :, None], 4)
      values = codes.value(q, stored['scale'][:, :, None], stored['zero'][:, :, None], 4)
      assert float(jnp.abs(values - groups).max()) <= 0.5001 * float(stored['scale'].max())
      whole[(*layer.path, 'experts', name)] = values.reshape(array.shape)
  np.testing.assert_allclose(trained.logits(new, sparse.replaced(made, most)),
                             trained.logits(cfg, sparse.replaced(params, whole)), rtol=1e-5, atol=1e-5)


def test_codes_are_prefixes_of_longer_ones():
  q = jax.random.randint(jax.random.key(0), (3, 21), 0, 256)
  packed = codes.pack(q, 8)
  for bits in range(1, 8):
    np.testing.assert_array_equal(codes.unpack(packed, 21, bits), codes.unpack(packed, 21, bits + 1) // 2)
  np.testing.assert_array_equal(codes.unpack(packed, 21), q)


def test_the_router_sends_edges_to_widths():
  plain, aux = wrapped.route(wrapped.inner())
  router = wrapped.around(wrapped.inner(), 'd2moe', widths=(2, 4, 8), thresholds=(0.5, 0.7),
                          most=(2, 2, 1, 0))
  a, report = wrapped.route(router)
  want = (plain.weight >= 0.5).astype(int) + (plain.weight >= 0.7)
  want = np.minimum(want, np.array([2, 2, 1, 0, 0])[np.asarray(plain.expert)])
  live = np.asarray(assignment.live(plain))
  np.testing.assert_array_equal(np.asarray(a.expert)[live], (np.asarray(plain.expert) * 3 + want)[live])
  assert (np.asarray(a.expert)[~live] == a.dead).all() and len({*want[live].tolist()}) > 1
  np.testing.assert_allclose(report.load.reshape(4, 3).sum(1), aux.load, rtol=1e-6)


@pytest.mark.parametrize('fields, words', [
    (dict(keep=0.5), 'keep=0.5: 16 bits of 32, and codes have 2 to 4; nearest: keep=0.125'),
    (dict(least=5), 'least=5 bits of bits=4; nearest: least=4')])
def test_mistakes_are_one_line(fields, words):
  cfg = trained.config(GLU, layers=(('dm', 1),))
  with pytest.raises(errors.UserError, match=words):
    d2moe.operate({}, cfg, trained.none, **fields)


def test_widths_that_do_not_rise_are_one_line():
  with pytest.raises(errors.UserError, match=r'widths=\(4, 2\) do not rise; nearest: \(2, 4\)'):
    wrapped.around(wrapped.inner(), 'd2moe', widths=(4, 2))
  with pytest.raises(errors.UserError, match='wanted: 1 thresholds, and 4 numbers below 2'):
    wrapped.around(wrapped.inner(), 'd2moe', widths=(2, 4), most=(0, 0, 0, 2))
