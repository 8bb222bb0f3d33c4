"""Clusters of experts with like logits: their means or their most used, also of other numbers by layer."""

import numpy as np
import pytest

from stmoe import errors
from stmoe.surgery import sparse
from stmoe.surgery import uncurl
from tests.surgery import trained

# Experts 0 and 3 have like logits, 1 and 2 also, less so.
ALIKE = np.array([[4, 0, 0, 3.9], [0, 4, 3, 0], [0, 3, 4, 0], [3.9, 0, 0, 4]])
STATISTICS = trained.calibration(load=[1, 4, 2, 5], logit_products=ALIKE)


def first(params):
  return params['decoder']['layers'][1]['layer']


@pytest.mark.parametrize('clustering', ['agglomerative', 'k_means'])
def test_experts_and_columns_become_means_by_usage_or_the_most_used(clustering):
  cfg = trained.config(layers=(('dm', 1),))
  params = trained.params(cfg)
  made, changes = uncurl.operate(params, cfg, STATISTICS, clustering=clustering)
  assert changes == {'blocks.m.router.num_experts': 2}
  for now, was in ((first(made)['experts']['wi'], first(params)['experts']['wi']),
                   (first(made)['router']['w'].T, first(params)['router']['w'].T)):
    np.testing.assert_allclose(now, [(was[0] + 5 * was[3]) / 6, (4 * was[1] + 2 * was[2]) / 6], rtol=1e-4,
                               atol=1e-5)
  made, _ = uncurl.operate(params, cfg, STATISTICS, clustering=clustering, member='used')
  stay = np.array([3, 1])
  np.testing.assert_array_equal(first(made)['experts']['wi'], first(params)['experts']['wi'][stay])
  np.testing.assert_array_equal(first(made)['router']['w'], first(params)['router']['w'][:, stay])


def test_adaptive_layers_share_a_budget():
  cfg = trained.config()
  loose = np.eye(4)

  def calibration(*names):
    return {layer: dict(load=np.ones(4), logit_products=products)
            for layer, products in dict(decoder_01=ALIKE, decoder_03=loose).items()}
  made, changes = uncurl.operate(trained.params(cfg), cfg, calibration, keep=0.75, adaptive=True)
  new = sparse.changed(cfg, changes)
  assert [layer.num_experts for layer in sparse.found(new)] == [2, 4]
  assert np.isfinite(trained.logits(new, made)).all()


@pytest.mark.parametrize('fields, words', [
    (dict(keep=0.25), ['keep=0.25 leaves 1 of 4', 'a token has 2', 'nearest: keep=0.5']),
    (dict(keep=0.25, adaptive=True), ['keep=0.25 leaves 2 experts', 'nearest: keep=0.5'])])
def test_what_cannot_be_clustered_is_one_line(fields, words):
  cfg = trained.config()
  with pytest.raises(errors.UserError) as caught:
    uncurl.operate(trained.params(cfg), cfg, STATISTICS, **fields)
  assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)
