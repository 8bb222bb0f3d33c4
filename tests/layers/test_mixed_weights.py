"""Mixtures of weights: the dense layer that they are, the width that is drawn, codes that are given."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.conform import layer as of_layer
from stmoe.layers import dense
from tests.layers import calls

D, F = 6, 8


def make(**fields):
  layer = lookup.recipe('layer', dict(name='mixed_weights', d_ff=F, widths=(2, F), hidden=4) | fields)(
      D, rngs=nnx.Rngs(0))
  for i, b in enumerate((layer.experts.bi, layer.experts.bo, *layer.code.b)):
    b[...] = jax.random.normal(jax.random.key(i), b.shape)
  return layer


@pytest.mark.parametrize('fields', [dict(), dict(neuron=True), dict(hidden=0, width=2)])
def test_a_width_is_a_dense_layer(fields):
  layer, x = make(**fields), calls.inputs(D)
  f = layer.width
  wi, bi, wo, bo = layer.subnet(jax.nn.one_hot(layer.widths.index(f), 2))
  plain = dense.Dense(D, d_ff=f, activation='gelu', use_bias=True, rngs=nnx.Rngs(1))
  plain.wi[...], plain.bi[...], plain.wo[...], plain.bo[...] = wi[:, :f], bi[:f], wo[:f], bo
  want = calls.call(plain, x, calls.context())[0]
  np.testing.assert_allclose(calls.call(layer, x, calls.context())[0], want, rtol=1e-4, atol=1e-5)


def test_a_width_s_code_may_be_its_part_of_the_largest():
  layer, x = make(coding='share', width=2), calls.inputs(D)
  assert layer.code.w0.shape == (1, 4)
  want = layer.run(x, jnp.array([2 / F]), 2)
  np.testing.assert_allclose(calls.call(layer, x, calls.context())[0], want, rtol=1e-5, atol=1e-6)


def test_training_draws_a_width_for_all_tokens():
  layer, x = make(), calls.inputs(D)
  alone = [calls.call(make(width=f), x, calls.context())[0] for f in (2, F)]
  found = set()
  for seed in range(8):
    y = calls.call(layer, x, calls.context(train=True, key=jax.random.key(seed)))[0]
    found |= {f for f, want in enumerate(alone) if np.allclose(y, want, atol=1e-5)}
  assert found == {0, 1}


def test_rows_have_mixtures_of_the_codes_that_they_are_given():
  layer, x = make(given='language', code_size=3), calls.inputs(D)
  codes = jax.random.normal(jax.random.key(9), (calls.B, 1, 3))
  y = calls.call(layer, x, calls.context(given=dict(language=codes)))[0]
  for row in range(calls.B):
    np.testing.assert_allclose(y[row], layer.run(x[row], codes[row, 0], F), rtol=1e-4, atol=1e-5)
  assert jnp.abs(layer.run(x[0], codes[0, 0], F) - layer.run(x[0], codes[1, 0], F)).max() > 1e-3
  with pytest.raises(errors.UserError, match="layer mixed_weights: nothing is given as 'language'"):
    layer(x, calls.context(), {})


@pytest.mark.parametrize('fields, said', [
    (dict(widths=(2, 9)), r'widths=\(2, 9\) of d_ff=8 units; nearest: 8'),
    (dict(width=3), r'width=3 is none of widths=\(2, 8\); nearest: 2'),
    (dict(given='task'), "given='task' and code_size=0"),
    (dict(given='task', code_size=3, coding='share'), "coding='share' is of widths")])
def test_a_mistake_is_one_line(fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    make(**fields)
  assert '\n' not in str(caught.value)


def test_the_shared_checks_give_the_layer_its_code():
  of_layer.rows_do_not_meet('mixed_weights', given='code', code_size=3)
