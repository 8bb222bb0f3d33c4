"""Every law gives what its paper prints, can be differentiated, and says what a table needs."""

import numpy as np
import pytest

from stmoe import lookup
from stmoe.analysis.scaling import columns
from stmoe.analysis.scaling import fit
from stmoe.analysis.scaling import optimum
from stmoe.analysis.scaling import saturation
from stmoe.configs.base import paper
from tests.analysis.scaling import runs

LAWS = lookup.available('law')


def law(name, published):
  module = lookup.module('law', name)
  return module, module.PUBLISHED[published]


@pytest.mark.parametrize('name', LAWS)
def test_law_is_whole(name):
  module = lookup.module('law', name)
  assert set(module.COLUMNS) <= set(columns.MEANING) and module.SOURCE and module.FORMULA
  for label, values in module.PUBLISHED.items():
    assert set(module.COEFFICIENTS) <= set(values), label
    for key, c in module.COEFFICIENTS.items():
      assert c.low < values[key] < c.high and all(c.low < start < c.high for start in c.starts), (label, key)


@pytest.mark.parametrize('name', LAWS)
def test_complex_step_is_the_derivative(name):
  """Against central differences: a law with abs, max or a branch in it would differ."""
  module, table, _ = runs.draw(name, next(iter(lookup.module('law', name).PUBLISHED)))
  problem = fit.Problem(module, table)
  values = module.PUBLISHED[next(iter(module.PUBLISHED))]
  theta = problem.coordinates([values[key] for key in problem.free])
  steps = 1e-6 * np.eye(len(theta))
  numeric = (problem.residuals(theta + steps) - problem.residuals(theta - steps)).T / 2e-6
  np.testing.assert_allclose(problem.jacobian(theta), numeric, rtol=1e-5, atol=1e-7)


def test_saturation_by_hand():
  """e_start at 1 expert, e_max at infinitely many; 1/(1/3 - 1/6) = 6 and 1/(1/(7 - 1 + 6) + 1/6) = 4."""
  np.testing.assert_allclose(saturation.saturated(np.array([1.0, 7.0, 1e15]), 3.0, 6.0), [3.0, 4.0, 6.0])


@pytest.mark.parametrize('router, n, experts, loss, dense', [
    ('s_base', 1.3e9, 512, 1.982, None), ('rl_r', 1.3e9, 512, 2.064, None), ('hash', 1.3e9, 512, 1.997, None),
    ('s_base', 15e6, 512, 2.607, None), ('rl_r', 15e6, 512, 2.631, None), ('hash', 15e6, 512, 2.590, None),
    ('s_base', 1.3e9, 1, 2.237, 1.3e9), ('s_base', 5e6, 128, None, 51.8e6),
    ('s_base', 1.3e9, 128, None, 4.64e9), ('rl_r', 1.3e9, 128, None, 2.99e9),
    ('hash', 1.3e9, 128, None, 3.80e9),
])
def test_clark(router, n, experts, loss, dense):
  """Losses and effective parameter counts of the rounded coefficients, to the digits given."""
  module, values = law('clark', router)
  table = dict(n_dense=np.array([n]), experts=np.array([float(experts)]))
  if loss:
    np.testing.assert_allclose(module.predict(values, table), loss, atol=6e-4)
  if dense:
    np.testing.assert_allclose(module.equivalent(values, table), dense, rtol=2e-3)


def test_effective_parameters_have_the_same_loss():
  module, values = law('clark', 'hash')
  table = runs.columns('clark')
  twin = dict(n_dense=module.equivalent(values, table), experts=np.ones_like(table['experts']))
  np.testing.assert_allclose(module.predict(values, twin), module.predict(values, table), rtol=1e-12)


@pytest.mark.parametrize('router, rounded', [('s_base', 1000e9), ('rl_r', 32e9), ('hash', 215e9)])
def test_cutoff_of_rounded_coefficients_is_not_the_published_one(router, rounded):
  module, values = law('clark', router)
  np.testing.assert_allclose(module.derived(values)['n_cutoff'], rounded, rtol=0.02)
  assert abs(np.log(values['n_cutoff'] / rounded)) > 0.05
  assert module.derived(dict(values, c=0.0))['n_cutoff'] == np.inf


def test_coefficients_of_s_base_have_one_value():
  _, values = law('clark', 's_base')
  assert paper.S_BASE_LAW == {key: values[key] for key in paper.S_BASE_LAW}


@pytest.mark.parametrize('active, tokens, granularity, budget, loss', [
    (1e8, 4.37e9, 8, 2.95e18, 3.133), (1e9, 28.94e9, 16, 1.93e20, 2.491), (3e9, 72.90e9, 16, 1.41e21, 2.245),
    (7e9, 137.60e9, 32, 6.46e21, 2.076), (70e9, 941.07e9, 32, 4.16e23, 1.694),
    (300e9, 2.96e12, 64, 5.69e24, 1.503), (1e12, 7.94e12, 64, 4.97e25, 1.367),
])
def test_best_models_of_fine_grained(active, tokens, granularity, budget, loss):
  """Table 2 of arXiv:2402.07871: exact granularity; 3 % and 0.03 nats for rounded coefficients."""
  module, values = law('fine_grained', 'e64')
  found = {g: optimum.best(module, values, budget, dict(granularity=g, expansion=64.0))
           for g in 2.0 ** np.arange(8)}
  best = min(found, key=lambda g: found[g].loss)
  assert best == granularity
  ratio = 12 / (8 * 64 + 4)                        # active over total: 12 d^2 and (8 E + 4) d^2 a layer
  np.testing.assert_allclose([found[best].n * ratio, found[best].tokens], [active, tokens], rtol=0.03)
  np.testing.assert_allclose(found[best].loss, loss, atol=0.03)


def test_fine_grained_at_1e20_is_a_dense_model_of_twenty_times_the_compute():
  module, values = law('fine_grained', 'e64')
  sparse = min(optimum.best(module, values, 1e20, dict(granularity=g, expansion=64.0)).loss
               for g in 2.0 ** np.arange(7))
  dense = [optimum.best(*law('chinchilla', 'dense'), factor * 1e20, {}).loss for factor in (20, 30)]
  assert dense[1] < sparse < dense[0]


@pytest.mark.parametrize('experts', [1, 2, 4, 8, 16, 32])
def test_joint_at_fixed_experts_is_chinchilla(experts):
  """Table 4 of arXiv:2502.05172 from its table 3, to 0.3 %."""
  module, values = law('joint', 'switch')
  _, row = law('chinchilla', f'joint_e{experts}')
  m, mu, n, nu = module.reduced(values, float(experts))
  np.testing.assert_allclose([m, -mu, n, -nu], [row['a'], row['alpha'], row['b'], row['beta']], rtol=3e-3)


@pytest.mark.parametrize('budget, experts, n, tokens', [
    (1e20, 1, 1.7e9, 9.7e9), (1e20, 32, 0.669e9, 24.9e9), (1e21, 8, 3.8e9, 44.3e9), (1e22, 1, 18.8e9, 88.6e9),
    (1e22, 32, 12.2e9, 136.9e9)])
def test_best_models_of_joint(budget, experts, n, tokens):
  module, values = law('joint', 'switch')
  found = optimum.best(module, values, budget, dict(experts=float(experts)))
  np.testing.assert_allclose([found.n, found.tokens], [n, tokens], rtol=0.02)


def test_best_model_has_the_closed_form():
  """n = G (F/6)^(beta/(alpha+beta)), G = (alpha a / (beta b))^(1/(alpha+beta)) of arXiv:2203.15556, eq. 4."""
  module, k = law('chinchilla', 'hoffmann')
  power = k['alpha'] + k['beta']
  size = (k['alpha'] * k['a'] / (k['beta'] * k['b'])) ** (1 / power) * (1e21 / 6) ** (k['beta'] / power)
  found = optimum.best(module, k, 1e21, {})
  np.testing.assert_allclose([found.n, found.n * found.tokens], [size, 1e21 / 6], rtol=1e-4)
  assert module.derived(k)['n_exponent'] == k['beta'] / power


@pytest.mark.parametrize('name, change, words', [
    ('clark', dict(experts=8.0), ['e_max needs', 'e_start needs']), ('clark', dict(n_dense=1e6), ['c needs']),
    ('joint', dict(experts=8.0), ['e_max needs', 'e_start needs']),
    ('fine_grained', dict(expansion=np.array([16.0] + [64.0] * 99)), ['one expansion rate'])])
def test_advice(name, change, words):
  module, table = lookup.module('law', name), runs.columns(name)
  assert module.advice(table) == []
  table |= {key: np.broadcast_to(value, table[key].shape) for key, value in change.items()}
  lines = module.advice(table)
  assert len(lines) == len(words) and all(word in ' '.join(lines) for word in words)
