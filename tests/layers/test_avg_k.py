"""Avg-K: weights of 1 and a gate that is the keys; what follows them, and what is computed for it."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.core import contract
from stmoe.layers import avg_k
from tests.layers import calls

D, BLOCKS = 6, 4


def make(**fields):
  known = dict(name='avg_k', d_ff=3, num_blocks=BLOCKS, k=2, executor='einsum')
  return lookup.recipe('layer', known | fields)(D, rngs=nnx.Rngs(0))


def test_all_blocks_are_the_dense_layer():
  layer, x = make(k=BLOCKS), calls.inputs(D)
  wi, wo = layer.experts.wi[...].swapaxes(0, 1).reshape(D, -1), layer.experts.wo[...].reshape(-1, D)
  y, aux = calls.call(layer, x, calls.context())
  np.testing.assert_allclose(y, jax.nn.relu(x @ wi) @ wo, rtol=1e-4, atol=1e-5)
  assert aux.load.tolist() == [calls.B * calls.T] * BLOCKS


def test_the_mean_key_scores_as_the_mean_of_pre_activations():
  layer, x = make(), calls.inputs(D)
  means = jnp.einsum('gsd,bdf->gsbf', x, layer.experts.wi[...]).mean(-1)
  np.testing.assert_allclose(layer.router.logits(x, calls.context()), means, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('gated, said', [(False, (None, 2)), (True, (False, None))])
def test_what_gates_add_up_to_is_said(gated, said):
  """Upcycling divides by it: k copies of a dense layer that are not weighted are k times the layer."""
  layer = make(gated=gated)
  assert tuple(contract.offered(layer.router, name) for name in ('normalize_gates', 'gates_sum')) == said
  a = layer.router(calls.inputs(D), calls.context(), {}).assignment
  assert bool((a.masks()[1].sum(axis=(2, 3)) == layer.k).all()) != gated


@pytest.mark.parametrize('fields', [{}, dict(gated_cells=True, activation='silu')])
def test_values_begin_as_those_of_the_dense_layer(fields):
  """The k blocks that a token reads add up: N(0, s / (k g)), keys N(0, s / D)."""
  experts = make(d_ff=64, num_blocks=16, k=8, init_scale=0.5, **fields).experts
  np.testing.assert_allclose(experts.wo[...].std(), (0.5 / (8 * 64)) ** 0.5, rtol=0.05)
  np.testing.assert_allclose(experts.wi[...].std(), (0.5 / D) ** 0.5, rtol=0.05)


def test_a_token_of_zeros_has_scores_and_a_gradient():
  layer, x = make(normalize=True, gated=True), calls.inputs(D).at[0, 0].set(0)
  def total(x):
    routed = layer.router(x, calls.context(), {})
    return routed.assignment.weight.sum() + routed.aux.losses['balance']
  value, slope = jax.value_and_grad(total)(x)
  assert jnp.isfinite(value) and jnp.isfinite(slope).all()
  assert not layer.router.logits(x, calls.context())[0, 0].any()


def test_weights_are_one_and_of_the_gated_form_a_part_of_the_softmax_with_a_gradient():
  def weights(wi, **fields):
    layer = make(k=1, **fields)
    layer.experts.wi[...] = wi
    return layer.router(calls.inputs(D), calls.context(), {}).assignment.weight
  wi = make().experts.wi[...]
  assert (weights(wi) == 1).all() and (weights(wi, gated=True) < 1).all()
  slope = lambda **fields: jnp.abs(jax.grad(lambda wi: weights(wi, **fields).sum())(wi)).max()
  assert slope() == 0 < slope(gated=True)


def test_a_gate_with_momentum_follows_the_keys():
  layer = make(momentum=0.75)
  first = layer.gate[...]
  np.testing.assert_allclose(first, layer.keys(), rtol=1e-6)
  layer.experts.wi[...] += 1
  modules.commit(layer, None)
  np.testing.assert_allclose(layer.gate[...], first + 0.25, rtol=1e-5)
  assert make().gate is None and avg_k.AvgK.computed.fget(layer) == {}


def test_what_scores_cost():
  assert make().computed == {('router', 'key'): (D, BLOCKS)}
  assert make(score='hidden').computed == {('router', 'hidden'): (D, BLOCKS * 3)}
  assert make(score='hidden', gated_cells=True).computed == {('router', 'hidden'): (D, BLOCKS * 6)}


def test_a_router_may_be_put_around_its_own():
  layer = make()
  wrapped = modules.wrapped(layer, lookup.recipe('router', dict(name='ranks', ranks=(1,))))
  x, ctx = calls.inputs(D), calls.context()
  first = layer.router(x, ctx, {}).assignment.expert.reshape(calls.B, 2, -1)
  seconds = jnp.bincount(first[:, 1].ravel(), length=BLOCKS)
  a = wrapped.router(x, ctx, {}).assignment
  assert jnp.bincount(a.expert[a.expert < BLOCKS], length=BLOCKS).tolist() == seconds.tolist()
  y = calls.call(layer, x, ctx)[0]
  assert jnp.abs(calls.call(wrapped, x, ctx)[0] - y).max() > 1e-3


@pytest.mark.parametrize('fields, said', [
    (dict(k=5), 'k=5 with num_experts=4'), (dict(score='up'), "score='up' is of gated cells; nearest"),
    (dict(score='hidden', momentum=0.5), "score='hidden' has no gate .* nearest: score='key'")])
def test_a_mistake_is_one_line(fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    make(**fields)
  assert '\n' not in str(caught.value)
