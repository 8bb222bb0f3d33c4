"""Dense networks and attention in shards compute what they did, and what the shares say is left."""

import numpy as np
import pytest

from stmoe import errors
from stmoe import sections
from stmoe.surgery import sparse
from stmoe.surgery import union_of_experts as union
from tests.surgery import trained


def config(**dense):
  cfg = trained.config(layers=(('d', 2),))
  cfg = sparse.changed(cfg, {'blocks': dict(d=dict(layer='dense', d_ff=6, **dense))})
  sections.complete(cfg)
  return cfg


@pytest.mark.parametrize('dense, fields', [
    (dict(use_bias=True, activation='gelu'), dict(num_experts=3, select='data')),
    (dict(gated=True, use_bias=True), dict(num_experts=2))], ids=['data', 'causal'])
def test_all_shards_are_the_dense_model(dense, fields):
  cfg = config(**dense)
  params = trained.params(cfg)
  after, changes = union.factorise(params, cfg, trained.none, share=1.0, **fields)
  block = changes['blocks.d']
  assert block['router']['k'] == fields['num_experts'] and block['attention']['k'] == 2
  before, now = trained.logits(cfg, params), trained.logits(sparse.changed(cfg, changes), after)
  np.testing.assert_allclose(now, before, rtol=1e-4, atol=1e-4)
  half, changes = union.factorise(params, cfg, trained.none, attention=False, **fields)
  assert changes['blocks.d']['attention'] is True
  assert np.abs(trained.logits(sparse.changed(cfg, changes), half) - before).max() > 0.01


def test_mistakes_are_one_line():
  cfg = config()
  with pytest.raises(errors.UserError, match='num_experts=4 does not divide the 6 .*nearest: num_experts=3'):
    union.factorise(trained.params(cfg), cfg, trained.none)
  normed = sparse.changed(cfg, {'model.attention': dict(name='attention', qk_norm=1e-5)})
  with pytest.raises(errors.UserError, match='not plain .* nearest: attention=False'):
    union.factorise(trained.params(normed), normed, trained.none, num_experts=3)
