"""What every router must do, whatever it does: routers are discovered by file name, plugins included."""

import jax
import jax.numpy as jnp
import pytest

from stmoe import conform
from stmoe import errors
from stmoe import lookup
from stmoe.conform import router as of_router
from stmoe.core import contract
from tests.routers import generic

NAMES = lookup.available('router')
# tests/core/test_conformance.py runs every executor.
CHECKS = [check for check in conform.checks('router') if check is not of_router.every_executor_agrees]

LONG = of_router.bfloat16_is_routed_in_float32, of_router.decoding_weighs_as_evaluation


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('check', [
    pytest.param(check, marks=[pytest.mark.slow] * (check in LONG), id=check.__name__) for check in CHECKS])
def test_contract(check, name):
  check(name)


def test_those_that_leak_refuse():
  """Each of these lets later tokens decide; the others were compared above."""
  leaking = {'expert_choice', 'expert_selection', 'switch_max'}
  ctx = contract.Context.of(jnp.ones((4, 12), jnp.int32), causal=True)
  for name in leaking:
    with pytest.raises(errors.UserError, match='causal stack'):
      jax.eval_shape(lambda name=name: generic.build(name, 8, 4, allow_causal=False)(
          jnp.ones((4, 12, 8)), ctx, {}))


@pytest.mark.parametrize('name', ['expert_choice', 'expert_selection'])
def test_those_whose_experts_choose_are_not_decoded(name):
  """Of a token alone every expert would take it, whatever it takes of several tokens."""
  of_router.decoding_weighs_as_evaluation(name)
  assert 'later ones too' in contract.offered(generic.build(name, 8, 4), 'undecodable')
