"""A sparse step needs the memory of a dense one and what its idle experts store, and hardly more."""

import jax
import pytest

from stmoe import experiment
from stmoe.aot import program
from stmoe.aot import step as aot
from stmoe.train import state as states


def sizes(name):
  """Returns (peak, parameters, parameters with the optimizer's slots) of the training step, in bytes."""
  cfg, _ = experiment.load(name)
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    plan, lowered = aot.lower(cfg, mesh)
    peak = program.memory(lowered.compile())['peak']
  size = lambda part: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(plan.shapes[part]))
  return peak, size('params'), size('params') + size('opt_state')


@pytest.mark.slow
def test_a_sparse_step_needs_little_more_than_a_dense_one_and_its_idle_state():
  """With 32 experts the gradient of idle experts, which the step holds as a whole, is counted besides."""
  dense, weights, state = sizes('lm/stdlib_small:method=dense')
  for method, of_gradient, most in (('method=switch', 0, 1.03), ('method=switch,experts=32', 1, 0.99)):
    peak, own_weights, own_state = sizes(f'lm/stdlib_small:{method}')
    assert peak <= most * (dense + own_state - state + of_gradient * (own_weights - weights))
