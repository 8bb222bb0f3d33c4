"""The weighing of router losses."""

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.core import contract
from stmoe.train import router_losses as losses


def report(**values):
  return contract.Aux(losses={n: jnp.float32(v) for n, v in values.items()}, load=jnp.ones(2), metrics={})


AUX = dict(a=report(balance=2.0, z=10.0), b=report(balance=4.0))


@pytest.mark.parametrize('weighted, expected', [
    (dict(balance=(0.5, 'mean')), 1.5), (dict(balance=(0.5, 'sum')), 3.0),
    (dict(balance=(0.5, 'mean'), z=(0.1, 'mean')), 2.5),   # z: the mean over the one layer with it
    (dict(balance=(0.0, 'mean'), z=(0.0, 'sum')), 0.0), ({}, 0.0)])
def test_router_losses(weighted, expected):
  loss, values = losses.router(AUX, weighted)
  assert float(loss) == expected
  assert float(values['z']) == 10.0
  assert float(values['balance']) == (6.0 if weighted.get('balance', ('', ''))[1] == 'sum' else 3.0)


@pytest.mark.parametrize('weighted, expected', [
    (dict(z=(1.0, 'sum')), 13.0), (dict(z=(1.0, 'sum'), attention_z=(10.0, 'mean')), 25.0),
    (dict(attention_z=(10.0, 'mean')), 15.0), (dict(z=(1.0, 'mean'), attention_z=(0.0, 'mean')), 10.0)])
def test_losses_of_attention_may_have_coefficients_of_their_own(weighted, expected):
  aux = {'decoder_00': report(z=10.0), 'decoder_00.attention.o': report(z=1.0),
         'decoder_00.attention.v': report(z=2.0)}
  losses.check(aux, weighted)
  loss, values = losses.router(aux, weighted)
  assert float(loss) == expected
  assert list(values) == sorted({'z', *weighted})


def test_coefficient_zero_keeps_nan_out():
  assert float(losses.router(dict(a=report(z=np.nan)), dict(z=(0.0, 'mean')))[0]) == 0.0


@pytest.mark.parametrize('weighted, message', [
    (dict(balanec=(0.1, 'mean')), "'balanec'; nearest: balance .reported: balance, z"),
    (dict(balance=(0.1, 'average')), "'average'")])
def test_losses_nobody_reports_are_user_errors(weighted, message):
  with pytest.raises(errors.UserError, match=message):
    losses.check(AUX, weighted)


def test_a_name_without_coefficient_is_no_mistake():
  losses.check({}, dict(balance=(0.0, 'mean')))


def test_a_loss_of_which_nothing_is_said_is_named():
  assert losses.unweighed(AUX, dict(balance=(0.0, 'mean'))) == [
      name for name in losses.reported(AUX) if name != 'balance'] != []


def test_a_part_that_only_an_unweighted_loss_trains_is_named():
  fields = dict(name='adamoe', num_experts=4, num_null=2)
  router = lookup.recipe('router', fields)(4, rngs=nnx.Rngs(0))
  for weighted in (dict(balance=(0.1, 'mean')), dict(plain_balance=(0.1, 'sum'))):
    losses.check_needed(router, weighted)
  with pytest.raises(errors.UserError, match='router adamoe: losses.balance and .* without coefficient'):
    losses.check_needed(router, dict(balance=(0.0, 'mean')))
  losses.check_needed(lookup.recipe('router', fields | dict(num_null=0))(4, rngs=nnx.Rngs(0)), {})
