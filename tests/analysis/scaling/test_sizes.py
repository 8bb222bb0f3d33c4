"""Sizes of configurations in the terms of the scaling laws, counted by hand."""

import pytest

from stmoe import experiment
from stmoe.analysis.scaling import columns
from stmoe.analysis.scaling import sizes

# lm/quickstart: width 128, 4 layers, F = 512, 2048 ids, no tied embeddings.
ATTENTION, FFN, NORMS = 4 * 4 * 128 ** 2, 4 * 2 * 128 * 512, 9 * 128
DENSE = ATTENTION + FFN + NORMS
EMBEDDINGS = 2 * 2048 * 128
BANK = 2 * 128 * 512                       # one expert as wide as the dense layer; two layers are sparse


@pytest.mark.parametrize('method, total, experts, granularity, expansion', [
    ('dense', DENSE, 1, 1, 1), ('switch', DENSE + 2 * 7 * BANK, 8, 1, 8),
    ('s_base', DENSE + 2 * 7 * BANK, 8, 1, 8),
    ('st_moe', DENSE + 2 * 3 * BANK, 8, 2, 4)])
def test_sizes_of_the_quickstart(method, total, experts, granularity, expansion):
  config, _ = experiment.load(f'lm/quickstart:method={method}')
  found = sizes.of(config)
  assert set(found) <= set(columns.MEANING)
  assert found['n_dense'] == DENSE and found['n_active_incl_emb'] == DENSE + EMBEDDINGS
  assert found['n_total_nonemb'] == total
  assert (found['experts'], found['granularity'], found['expansion']) == (experts, granularity, expansion)


def test_layers_of_different_numbers_of_experts():
  config, _ = experiment.load('lm/quickstart:method=switch', ["model.layers=(('m',1),('n',1))"])
  config.unlock()
  config.blocks.n = config.blocks.m.copy_and_resolve_references()
  config.blocks.n.router.num_experts = 4
  assert set(sizes.of(config)) == {'n_dense', 'n_active_incl_emb', 'n_total_nonemb'}
