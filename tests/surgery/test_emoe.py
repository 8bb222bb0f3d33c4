"""EMoE: blocks of equal size and like keys, whose parts of the output bias add up for k of them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import emoe
from tests.surgery import trained

ARRAYS = dict(wi=jnp.arange(12.0).reshape(2, 6), wo=jnp.arange(12.0).reshape(6, 2), bi=jnp.arange(6.0),
              bo=jnp.array([4.0, 8.0]))


def apart(rows, units):
  return sum(np.square(rows[block] - rows[block].mean(0)).sum() for block in units)


def test_units_of_one_direction_are_a_block_whatever_their_length():
  """Of 3 directions 4 units each, in mixed order; the order in a block is that of the layer."""
  rng = np.random.default_rng(1)
  label = rng.permutation(np.repeat(np.arange(3), 4))
  keys = np.eye(3, dtype=np.float32)[label] + rng.normal(0, 0.05, (12, 3)).astype(np.float32)
  keys *= rng.uniform(0.1, 10, (12, 1)).astype(np.float32)
  for seed in range(3):
    units = emoe.clusters(keys, 3, np.random.default_rng(seed))
    assert {tuple(block) for block in units.tolist()} == {
        tuple(np.flatnonzero(label == i).tolist()) for i in range(3)}
    assert units[:, 0].tolist() == sorted(units[:, 0].tolist())


def test_of_a_few_starts_one_finds_the_nearest_blocks():
  rng = np.random.default_rng(2)
  keys = rng.normal(size=(8, 3)).astype(np.float32)
  rows = keys / np.linalg.norm(keys, axis=1, keepdims=True)
  halves = [(list(a), [i for i in range(8) if i not in a]) for a in itertools.combinations(range(8), 4)]
  every = sorted(apart(rows, half) for half in halves)
  found = min(apart(rows, emoe.clusters(keys, 2, np.random.default_rng(seed))) for seed in range(3))
  np.testing.assert_allclose(found, every[0], rtol=1e-6)


@pytest.mark.parametrize('number', [1, 6])
def test_one_block_and_blocks_of_one_unit(number):
  units = emoe.clusters(np.zeros((6, 2), np.float32), number, np.random.default_rng(0))
  assert sorted(units.ravel().tolist()) == list(range(6)) and len(units) == number


def test_a_block_has_its_units_and_a_part_of_the_bias():
  made = emoe.blocks(ARRAYS, np.array([[0, 2, 5], [1, 3, 4]]), 1)
  assert made['wi'][1].tolist() == [[1, 3, 4], [7, 9, 10]] and made['bi'].tolist() == [[0, 2, 5], [1, 3, 4]]
  assert made['wo'][0].tolist() == [[0, 1], [4, 5], [10, 11]]
  assert made['bo'].tolist() == [[4, 8], [4, 8]]                     # a token has one of them
  assert emoe.blocks(ARRAYS, np.array([[0, 2, 5], [1, 3, 4]]), 2)['bo'].tolist() == [[2, 4], [2, 4]]


def test_more_blocks_than_there_are_is_one_line():
  cfg = trained.config(layers=(('d', 2),))
  with pytest.raises(errors.UserError, match='k=3 of num_blocks=2 blocks; nearest: k=2'):
    emoe.factorise({}, cfg, trained.none, num_blocks=2, k=3)


def test_all_blocks_are_the_dense_model_and_fewer_are_another():
  """Gated, with biases and a limit; every field of the layer comes along."""
  cfg = trained.config(layers=(('d', 2),)).copy_and_resolve_references()
  with cfg.unlocked():
    cfg.blocks = dict(d=dict(layer='dense', d_ff=8, activation='silu', gated=True, use_bias=True, limit=0.5,
                             dropout_rate=0.1, init_scale=1.0))
  params = trained.params(cfg)
  before = trained.logits(cfg, params)
  def after(**fields):
    new, changes = emoe.factorise(params, cfg, trained.none, num_blocks=4, **fields)
    assert changes['blocks.d']['dropout_rate'] == 0.1
    return trained.logits(emoe.sparse.changed(cfg, changes), new)
  np.testing.assert_allclose(after(k=4), before, rtol=1e-4, atol=1e-5)
  assert np.abs(after() - before).max() > 1e-2
