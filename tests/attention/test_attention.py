"""Attention: what is visible, grouped heads, positions, dropout as the published formula has it."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.attention import attention
from stmoe.errors import UserError
from stmoe.parts import relpos
from stmoe.parts import rotary
from stmoe.parts import visible
from tests.attention import calls


def build(**fields):
  return attention.Attention(12, **(dict(num_heads=4, head_dim=6, rngs=nnx.Rngs(0)) | fields))


def test_causal_mask_of_packed_rows_and_prefix():
  segments = jnp.array([[1, 1, 2, 2, 0]])
  expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
  np.testing.assert_array_equal(visible.causal(segments)[0, 0], np.array(expected, bool))
  prefix = jnp.array([[1, 1, 0, 0, 0]])                              # the first two see each other
  expected[0][1] = 1
  np.testing.assert_array_equal(visible.causal(segments, prefix)[0, 0], np.array(expected, bool))


def test_grouped_queries_equal_repeated_heads():
  grouped, full = build(num_kv_heads=2), build()
  full.wq[...], full.wo[...] = grouped.wq[...], grouped.wo[...]
  for name in ('wk', 'wv'):
    heads = getattr(grouped, name)[...].reshape(12, 2, 6)
    getattr(full, name)[...] = jnp.repeat(heads, 2, axis=1).reshape(12, 24)
  x = jax.random.normal(jax.random.key(1), (2, 5, 12))
  seen = visible.Visible(mask=visible.causal(jnp.ones((2, 5), jnp.int32)))
  np.testing.assert_allclose(calls.call(grouped, x, seen), calls.call(full, x, seen), atol=1e-5)


def test_attention_equals_its_formula():
  layer = build(scaled=False)
  x = jax.random.normal(jax.random.key(2), (1, 3, 12))
  bias = jax.random.normal(jax.random.key(3), (1, 4, 3, 3))
  heads = lambda w: (x[0] @ w[...]).reshape(3, 4, 6).swapaxes(0, 1)  # [H, T, P]
  q, k, v = heads(layer.wq), heads(layer.wk), heads(layer.wv)
  logits = q @ k.swapaxes(1, 2) + bias[0]
  probs = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((3, 3), bool)), logits, -jnp.inf), axis=-1)
  seen = visible.Visible(mask=visible.causal(jnp.ones((1, 3), jnp.int32)), bias=bias)
  y = (probs @ v).swapaxes(0, 1).reshape(3, 24) @ layer.wo[...]
  np.testing.assert_allclose(calls.call(layer, x, seen)[0], y, atol=1e-5)
  # T5's query initialiser carries the 1/sqrt(P) that its logits lack.
  assert abs(layer.wq[...].std() * 6 ** 0.5 / layer.wk[...].std() - 1) < 0.2


def test_a_scale_of_its_own_is_the_factor_of_the_logits():
  layer, plain = build(scale=0.1), build()
  x = jax.random.normal(jax.random.key(4), (1, 4, 12))
  seen = visible.Visible(mask=visible.causal(jnp.ones((1, 4), jnp.int32)))
  y = calls.call(layer, x, seen)
  plain.wq[...] = plain.wq[...] * 0.1 * 6 ** 0.5
  np.testing.assert_allclose(y, calls.call(plain, x, seen), atol=1e-6)


def test_pairs_of_neighbours_are_pairs_of_halves_of_other_columns():
  """Pair i is columns 2i and 2i + 1 of a head of 6, where halves have columns i and i + 3."""
  layer, halves = build(num_kv_heads=2, interleaved=True), build(num_kv_heads=2)
  x = jax.random.normal(jax.random.key(5), (1, 4, 12))
  seen = visible.Visible(mask=visible.causal(jnp.ones((1, 4), jnp.int32)),
                         turn=rotary.table(jnp.arange(4)[None] * 3, 6))
  y = calls.call(layer, x, seen)
  assert np.abs(calls.call(halves, x, seen) - y).max() > 1e-2
  for name in ('wq', 'wk'):
    heads = getattr(layer, name)[...].reshape(12, -1, 6)
    getattr(halves, name)[...] = heads[..., jnp.array([0, 2, 4, 1, 3, 5])].reshape(12, -1)
  np.testing.assert_allclose(calls.call(halves, x, seen), y, atol=1e-5)


@pytest.mark.parametrize('biased', [False, True])
def test_sinks_are_in_the_sum_and_have_no_value(biased):
  layer = build(num_kv_heads=2, sinks=True)
  layer.sinks[...] = jnp.array([-1.0, 0.0, 1.0, 3.0])
  x = jax.random.normal(jax.random.key(2), (2, 3, 12))
  bias = jax.random.normal(jax.random.key(3), (1, 4, 3, 3)) if biased else None
  heads = lambda w, repeats: jnp.repeat((x @ w[...]).reshape(2, 3, -1, 6), repeats, axis=2)
  q, k, v = heads(layer.wq, 1), heads(layer.wk, 2), heads(layer.wv, 2)
  logits = jnp.einsum('bthp,bkhp->bhtk', q, k) / 6 ** 0.5 + (bias if biased else 0)
  powers = jnp.where(jnp.tril(jnp.ones((3, 3), bool)), jnp.exp(logits), 0)
  probs = powers / (powers.sum(-1, keepdims=True) + jnp.exp(layer.sinks[...])[None, :, None, None])
  seen = visible.Visible(mask=visible.causal(jnp.ones((2, 3), jnp.int32)), bias=bias)
  y = jnp.einsum('bhtk,bkhp->bthp', probs, v).reshape(2, 3, 24) @ layer.wo[...]
  np.testing.assert_allclose(calls.call(layer, x, seen), y, atol=1e-5)
  grad = jax.grad(lambda layer: calls.call(layer, x, seen).sum())(layer)
  assert (jnp.abs(grad.sinks[...]) > 1e-4).all()


def test_dropout_of_probabilities_is_per_key_and_head():
  """With identity values and output the layer returns the dropped probabilities themselves."""
  layer = attention.Attention(4, num_heads=1, head_dim=4, dropout_rate=0.5, rngs=nnx.Rngs(0))
  layer.wv[...] = layer.wo[...] = jnp.eye(4)
  x = jnp.eye(4)[None]                                               # v_j = e_j, so y_i = p_i
  seen = visible.Visible(mask=jnp.ones((1, 1, 4, 4), bool))
  probs, dropped = calls.call(layer, x, seen)[0], calls.call(layer, x, seen, jax.random.key(3))[0]
  kept = dropped[0] > 0
  assert 0 < kept.sum() < 4
  np.testing.assert_allclose(dropped, jnp.where(kept, probs / 0.5, 0), atol=1e-6)


def test_rotary_logits_depend_on_distance_only():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  at = lambda x, position: rotary.rotate(x, rotary.table(jnp.array([[position]]), 8))
  logit = lambda i, j: jnp.sum(at(q, i) * at(k, j))
  np.testing.assert_allclose(logit(9, 4), logit(5, 0), atol=1e-5)
  assert abs(logit(9, 4) - logit(9, 3)) > 1e-2
  np.testing.assert_allclose(at(q, 0), q)


def test_relative_bias_is_of_the_distance():
  bias = relpos.RelativeBias(2, num_buckets=8, max_distance=16, bidirectional=False, rngs=nnx.Rngs(0))
  table, values = bias.table[...], bias(5, 5)[0]
  np.testing.assert_array_equal(values[:, 4, 2], table[:, 2])        # two before: bucket 2
  np.testing.assert_array_equal(values[:, 2, 4], table[:, 0])        # after: bucket 0


def test_heads_that_do_not_divide_name_the_possible_ones():
  with pytest.raises(UserError, match='num_kv_heads 3 does not divide num_heads 4; possible: 1, 2, 4'):
    build(num_kv_heads=3)


def test_a_window_is_itself_and_what_is_just_before():
  segments = jnp.array([[1, 1, 1, 1, 2]])
  expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
  np.testing.assert_array_equal(visible.causal(segments, window=2)[0, 0], np.array(expected, bool))


def test_queries_and_keys_are_biased_normalised_over_all_heads_and_clipped_in_this_order():
  layer = build(num_kv_heads=2, qkv_bias=True, qk_norm=1e-5, clip=0.5)
  key = iter(jax.random.split(jax.random.key(5), 9))
  for array in (layer.bq, layer.bk, layer.bv, layer.q_norm.scale, layer.k_norm.scale):
    array[...] = jax.random.normal(next(key), array.shape)
  assert layer.bo is None
  x = jax.random.normal(next(key), (1, 3, 12))
  rms = lambda y: y / jnp.sqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)
  q = jnp.clip(rms(x @ layer.wq[...] + layer.bq[...]) * layer.q_norm.scale[...], -0.5, 0.5)
  k = jnp.clip(rms(x @ layer.wk[...] + layer.bk[...]) * layer.k_norm.scale[...], -0.5, 0.5)
  v = jnp.clip(x @ layer.wv[...] + layer.bv[...], -0.5, 0.5)
  seen = visible.Visible(mask=jnp.ones((1, 1, 3, 3), bool))
  y = jax.nn.dot_product_attention(q.reshape(1, 3, 4, 6), k.reshape(1, 3, 2, 6), v.reshape(1, 3, 2, 6))
  np.testing.assert_allclose(calls.call(layer, x, seen), y.reshape(1, 3, 24) @ layer.wo[...], atol=1e-5)


def test_each_head_is_normalised_by_itself_and_turned_in_part():
  """The first four of six numbers of a head are turned, after the norm; values are neither."""
  layer = build(num_kv_heads=2, head_dim=4, nope_dim=2, use_bias=True, qk_norm=1e-5, qk_norm_over='head')
  key = iter(jax.random.split(jax.random.key(5), 9))
  for array in (layer.bq, layer.bk, layer.bv, layer.bo, layer.q_norm.scale, layer.k_norm.scale):
    array[...] = jax.random.normal(next(key), array.shape)
  assert layer.q_norm.scale.shape == layer.k_norm.scale.shape == (6,)
  x = jax.random.normal(next(key), (1, 3, 12))
  rms = lambda y: y / jnp.sqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)
  split = lambda w, b: (x @ w[...] + b[...]).reshape(1, 3, -1, 6)
  turn = rotary.table(jnp.array([[0, 1, 5]]), 4)
  turned = lambda y: jnp.concatenate([rotary.rotate(y[..., :4], turn), y[..., 4:]], axis=-1)
  q = turned(rms(split(layer.wq, layer.bq)) * layer.q_norm.scale[...])
  k = turned(rms(split(layer.wk, layer.bk)) * layer.k_norm.scale[...])
  y = jax.nn.dot_product_attention(q, k, split(layer.wv, layer.bv), scale=6 ** -0.5)
  seen = visible.Visible(mask=jnp.ones((1, 1, 3, 3), bool), turn=turn)
  expected = y.reshape(1, 3, 24) @ layer.wo[...] + layer.bo[...]
  np.testing.assert_allclose(calls.call(layer, x, seen), expected, atol=1e-5)


@pytest.mark.parametrize('rotate', [rotary.rotate, rotary.rotate_neighbours])
def test_numbers_past_the_angles_stay(rotate):
  x, turn = jax.random.normal(jax.random.key(0), (1, 1, 2, 7)), rotary.table(jnp.array([[3]]), 4)
  np.testing.assert_array_equal(rotate(x, turn), jnp.concatenate([rotate(x[..., :4], turn), x[..., 4:]], -1))
