"""The attention-free compared models cost what the dense language model does, as near as chunks allow."""

import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.analysis import flops


def cost(name):
  """Active FLOPs per token of all but the routers, which come on top in every method."""
  cfg = experiment.load(name)[0]
  routers = sum(2 * m.size for m in flops.matrices(cfg) if 'router' in m.path and m.multiplied)
  return flops.active_per_token(cfg)['forward'] - routers


@pytest.mark.parametrize('name', ['lm/quickstart', 'lm/stdlib_small', 'lm/stdlib'])
@pytest.mark.parametrize('method', ['gmlp', 'smlp'])
def test_equal_active_flops(name, method):
  ratio = cost(f'{name}:method={method}') / cost(f'{name}:method=dense')
  assert ratio == 1 if name == 'lm/quickstart' else abs(ratio - 1) < 0.005


def test_the_dense_twin_of_the_small_size_has_the_heads_but_no_tokens_to_route():
  heads, deterministic = (cost(f'smlp/small:model={model}') for model in ('heads', 'deterministic'))
  assert cost('smlp/small:model=gmlp') == heads
  assert deterministic - heads == 2 * (2 * 2 * 256 * 1024)           # two tMoE layers


def test_partial_prediction_without_unscored_prefix_is_refused():
  with pytest.raises(errors.UserError, match='nearest: model=partial,loss_from=0.2'):
    experiment.load('smlp/small:model=partial,loss_from=0.1')
