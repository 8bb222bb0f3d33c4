"""Loss and gradients do not depend on how a batch is computed or laid out. Every router at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from stmoe import axes
from stmoe.surgery import layout

# Two stacks, and all routers at once, take minutes of compilation: `make test-slow`.
NAMES = ('lm', *(pytest.param(name, marks=pytest.mark.slow) for name in ('t5', 'zoo', 'heads')))
LENGTH = 2 * tiny.SIZE
KEY = jax.random.key(7, impl='unsafe_rbg')                              # compiles faster
NOISY = dict(dropout_rate=0.2)


@pytest.fixture(scope='module', params=NAMES)
def name(request):
  return request.param


@pytest.fixture(scope='module')
def whole(name):
  """Four rows of two routing groups; lengths differ, so that microbatches hold unequal token counts."""
  return tiny.batch(name, 4, LENGTH, real=[[8], [3], [5], [8]])


@pytest.fixture(scope='module')
def plain(name, whole):
  return tiny.run(name, tiny.build(name), whole)


@pytest.fixture(scope='module')
def noisy(name, whole):
  return tiny.run(name, tiny.build(name, **NOISY), whole, KEY)


@pytest.mark.slow
def test_noise_is_drawn(plain, noisy):
  assert abs(float(plain[0] - noisy[0])) > 1e-3


def test_scan_and_loop_are_equal_and_draw_the_same_noise(name, whole, noisy):
  graphdef, _, _ = tiny.build(name, scan_layers=False, **NOISY)
  params, state = (layout.unroll(part) for part in tiny.build(name, **NOISY)[1:])
  loss, grads = tiny.run(name, (graphdef, params, state), whole, KEY)
  tiny.assert_equal((loss, layout.roll(grads)), noisy)


@pytest.mark.parametrize('remat', ['full', *(pytest.param(policy, marks=pytest.mark.slow)
                                             for policy in ('none', 'dots', 'dots_no_batch'))])
def test_rematerialisation(name, whole, noisy, remat):
  if name != 'lm' and remat != 'full':
    pytest.skip('policies act on units, which the language model covers')
  tiny.assert_equal(tiny.run(name, tiny.build(name, remat=remat, **NOISY), whole, KEY), noisy)


def test_microbatches(name, whole, plain):
  tiny.assert_equal(tiny.run(name, tiny.build(name), whole, parts=4), plain)


def test_padding_of_the_batch(name, whole, plain):
  """Two rows and one routing group per row of nothing but padding."""
  padded = {key: jnp.pad(a, ((0, 2), (0, tiny.SIZE))) for key, a in whole.items()}
  tiny.assert_equal(tiny.run(name, tiny.build(name), padded), plain)


def test_packing(name):
  """Two sequences of one group each in a row, or each in a row of its own followed by padding."""
  apart = tiny.batch(name, 4, LENGTH, real=tiny.SIZE)
  def pack(a):
    return a.reshape(2, 2, LENGTH)[..., :tiny.SIZE].reshape(2, LENGTH)
  packed = {key: pack(a) for key, a in apart.items()}
  second = np.arange(LENGTH) >= tiny.SIZE
  packed |= {key: a + second for key, a in packed.items() if key.endswith('segment_ids')}
  tiny.assert_equal(tiny.run(name, tiny.build(name), packed), tiny.run(name, tiny.build(name), apart))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['lm', 'zoo', 'heads'], indirect=True)
def test_devices(name):
  """One device, or batch and experts split over eight; the trainer's own test is tests/train/test_step.py."""
  whole = tiny.batch(name, 8, LENGTH, real=[[8], [3], [5], [8], [2], [8], [7], [8]])
  one, made = tiny.run(name, tiny.build(name), whole), tiny.build(name)
  mesh = axes.make_mesh(data=4, expert=2)
  with jax.set_mesh(mesh):
    rows = jax.sharding.NamedSharding(mesh, axes.spec(('batch', 'length')))
    split = {key: jax.device_put(a, rows) for key, a in whole.items()}
    assert len(split['decoder_input_tokens'].addressable_shards) == 8
    eight = tiny.run(name, made, split)
  tiny.assert_equal(jax.device_get(eight), one)


def test_conversion_is_a_round_trip(name):
  params = tiny.build(name)[1]
  there = layout.unroll(params)
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(there) == shapes(tiny.build(name, scan_layers=False)[1])
  jax.tree.map(np.testing.assert_array_equal, layout.roll(there), params)
