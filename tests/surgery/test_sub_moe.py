"""Experts with like outputs in one: means, projected on the subspace of the group's matrices."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import merge
from stmoe.surgery import sparse
from stmoe.surgery import sub_moe
from tests.surgery import trained

GLU = dict(name='glu', d_ff=6)
LOAD = [1, 4, 2, 5]                                                  # groups 0 and 2, 1 and 3
COSINES = np.array([[9, 0, 8, 1], [0, 9, 1, 7], [8, 1, 9, 0], [1, 7, 0, 9]])


def statistics(rng):
  square = lambda size: np.einsum('etc,etd->ecd', *[rng.normal(size=(4, 9, size))] * 2)
  return trained.calibration(load=LOAD, output_cosines=COSINES, output_products=COSINES,
                             coactivation=np.eye(4), input_products=square(8), own_hidden_products=square(6))


def test_at_full_rank_it_is_the_mean_by_usage():
  cfg = trained.config(layers=(('dm', 1),))
  params = trained.params(cfg)
  made, changes = sub_moe.operate(params, cfg, statistics(np.random.default_rng(0)))
  layer, bank = made['decoder']['layers'][1]['layer'], params['decoder']['layers'][1]['layer']['experts']
  assert layer['router']['table'].tolist() == [0, 1, 0, 1]
  for name, array in layer['experts'].items():
    mean = [merge.mean(bank[name], group, np.array(LOAD)[group]) for group in ([0, 2], [1, 3])]
    np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-6)
  assert np.isfinite(trained.logits(sparse.changed(cfg, changes), made)).all()


@pytest.mark.parametrize('whitened', [True, False])
def test_at_lower_rank_it_is_the_mean_s_projection_as_a_matrix_or_as_factors(whitened):
  cfg = trained.config(GLU, layers=(('dm', 1),))
  params, of = trained.params(cfg), statistics(np.random.default_rng(0))
  runs = [sub_moe.operate(params, cfg, of, rank=2, whitened=whitened, factored=way) for way in (False, True)]
  whole, factors = (made['decoder']['layers'][1]['layer']['experts'] for made, _ in runs)
  bank = params['decoder']['layers'][1]['layer']['experts']
  for name, item in (('wi', 'input_products'), ('wo', 'own_hidden_products')):
    moments = of(item)['decoder_01'][item]
    root = np.linalg.cholesky(moments if whitened else 0 * moments + np.eye(len(moments[0])))
    own = [np.float64(bank[name][e]).T @ root[e] for e in (0, 2)]
    axes = np.linalg.svd(np.concatenate(own, 1))[0][:, :2]
    mean = merge.mean(bank[name], [0, 2], np.array([1.0, 2.0]))
    np.testing.assert_allclose(whole[name][0], mean @ axes @ axes.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(factors[name]['u'] @ factors[name]['v'], whole[name], rtol=1e-4, atol=1e-5)
  logits = [trained.logits(sparse.changed(cfg, changes), made) for made, changes in runs]
  np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


def test_columns_may_be_summed():
  cfg = trained.config(layers=(('dm', 1),))
  params = trained.params(cfg)
  made, changes = sub_moe.operate(params, cfg, statistics(np.random.default_rng(0)), router='sum',
                                  geometry='euclidean')
  w, before = (np.asarray(p['decoder']['layers'][1]['layer']['router']['w']) for p in (made, params))
  assert changes == {'blocks.m.router.num_experts': 2}
  np.testing.assert_allclose(w, before[:, :2] + before[:, 2:], rtol=1e-5)


def test_k_means_of_inner_products_is_k_means_of_the_points():
  """Points in a plane, in four heaps around the corners of a square; one heap has a single point."""
  rng = np.random.default_rng(0)
  corners = np.array([[9, 9], [9, -9], [-9, 9], [-9, -9]])[[0, 1, 2, 0, 1, 2, 0, 1, 2, 3]]
  points = corners + rng.normal(size=(10, 2))
  found = sub_moe.clusters(points @ points.T, 4, 5)
  assert found == [[0, 3, 6], [1, 4, 7], [2, 5, 8], [9]]
  assert sub_moe.clusters(np.ones((3, 3)), 3, 2) == [[0], [1], [2]]           # copies, each alone


@pytest.mark.parametrize('fields, words', [
    (dict(whitened=True), ['rank=None', 'whitened=True', 'nearest: rank=64']),
    (dict(rank=7), ['rank=7', 'smaller side is 6', 'nearest: rank=6']),
    (dict(keep=0.25, router='sum'), ['keep=0.25 leaves 1 of 4', 'a token has 2'])])
def test_what_cannot_be_merged_is_one_line(fields, words):
  cfg = trained.config(GLU, layers=(('dm', 1),))
  with pytest.raises(errors.UserError) as caught:
    sub_moe.operate(trained.params(cfg), cfg, statistics(np.random.default_rng(0)), **fields)
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)
