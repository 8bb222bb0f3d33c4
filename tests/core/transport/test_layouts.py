"""Both layouts compute the same expert on the same rows, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core.transport import layouts

E, R, D, F = 3, 4, 5, 6


def arrays():
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = (E, R, D), (E, D, F), (E, F), (E, F)
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]


def expert(rows, w, b, scale):
  return rows.linear(w, b).scale(scale).map(lambda x, y: jnp.tanh(x) * y, rows.linear(w))


def test_ragged_equals_buckets():
  x, w, b, scale = arrays()

  def buckets(x, *parameters):
    return expert(layouts.Buckets(x), *parameters).x.reshape(E * R, F)

  def ragged(x, *parameters):
    return expert(layouts.Ragged(x.reshape(E * R, D), jnp.full(E, R)), *parameters).x
  cotangent = jnp.cos(jnp.arange(E * R * F)).reshape(E * R, F)
  (y, pull), (z, pull_z) = jax.vjp(buckets, x, w, b, scale), jax.vjp(ragged, x, w, b, scale)
  np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-6)
  for got, want in zip(pull(cotangent), pull_z(cotangent)):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_buckets_against_a_loop_over_experts():
  x, w, b, scale = arrays()
  got = expert(layouts.Buckets(x), w, b, scale).x
  for e in range(E):
    want = np.tanh((x[e] @ w[e] + b[e]) * scale[e]) * (x[e] @ w[e])
    np.testing.assert_allclose(got[e], want, rtol=1e-5, atol=1e-6)


def test_gradients_of_the_product_are_those_of_autodiff():
  x, w, _, _ = arrays()
  plain = lambda x, w: jnp.einsum('erd,edf->erf', x, w)
  cotangent = jnp.cos(jnp.arange(E * R * F)).reshape(E, R, F)
  for got, want in zip(jax.vjp(layouts.per_expert, x, w)[1](cotangent), jax.vjp(plain, x, w)[1](cotangent)):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_ragged_rows_of_uneven_and_empty_experts():
  x, w = jnp.ones((4, 1)), jnp.arange(1.0, 4.0).reshape(3, 1, 1)
  rows = layouts.Ragged(x, jnp.array([1, 0, 3]))
  assert rows.linear(w, jnp.full((3, 1), 0.5)).x.tolist() == [[1.5], [3.5], [3.5], [3.5]]


def test_products_are_in_the_dtype_of_the_rows():
  x, w, b, scale = arrays()
  assert expert(layouts.Buckets(x.astype(jnp.bfloat16)), w, b, scale).x.dtype == jnp.bfloat16


def test_shared_arrays_are_those_of_every_expert():
  x, w, b, scale = arrays()
  uneven = layouts.Ragged(x.reshape(E * R, D), jnp.array([5, 0, 7]))
  for rows in (layouts.Buckets(x), uneven):
    tiled = expert(rows, *(jnp.repeat(v[:1], E, axis=0) for v in (w, b, scale))).shift(b[:1] + 0 * b).x
    np.testing.assert_allclose(expert(rows, w[0], b[0], scale[0]).shift(b[0]).x, tiled, rtol=1e-5, atol=1e-6)


def test_each_runs_one_expert_at_a_time():
  x, w, b, _ = arrays()
  one = lambda x, w, b: jnp.cumsum(x, axis=-1) @ w + b
  want = jnp.stack([one(x[e], w[e], b[e]) for e in range(E)])
  np.testing.assert_allclose(layouts.Buckets(x).each(one, w, b).x, want, rtol=1e-4, atol=1e-5)
  ragged = layouts.Ragged(x.reshape(E * R, D), jnp.array([5, 0, 7])).each(one, w, b).x
  expected = jnp.concatenate([one(x.reshape(-1, D)[:5], w[0], b[0]), one(x.reshape(-1, D)[5:], w[2], b[2])])
  np.testing.assert_allclose(ragged, expected, rtol=1e-4, atol=1e-5)
