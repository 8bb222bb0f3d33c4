"""The references agree with loops over rows in numpy, which are slower still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.combine import reference as combine
from pallas_kernels.gmm import reference as gmm
from pallas_kernels.route import reference as route
from pallas_kernels.tgmm import reference as tgmm

SIZES = [2, 0, 3, 1]                                                 # 6 of 8 rows


def normal(seed, *shape):
  return np.array(jax.random.normal(jax.random.key(seed), shape))


def test_grouped_products_are_those_of_single_rows():
  x, dy, w = normal(0, 8, 5), normal(1, 8, 3), normal(2, 4, 5, 3)
  x[6:] = dy[6:] = np.nan
  expert = np.repeat(np.arange(4), SIZES)
  out, dw = np.zeros((8, 3)), np.zeros((4, 5, 3))
  for row, e in enumerate(expert):
    out[row] = x[row] @ w[e]
    dw[e] += np.outer(x[row], dy[row])
  sizes = jnp.array(SIZES)
  np.testing.assert_allclose(gmm.gmm(x, w, sizes), out, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gmm.gmm(x, w.swapaxes(1, 2), sizes, transposed=True), out, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(tgmm.tgmm(x, dy, sizes), dw, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('weighted', [True, False])
def test_combine_adds_rows_of_choices(weighted):
  rows, weight = normal(0, 6, 3), normal(1, 4, 2)
  at = np.array([[0, 1], [-1, 4], [-1, -1], [2, 2]])
  rows[[3, 5]] = np.nan
  want = np.zeros((4, 3))
  for t, j in zip(*np.nonzero(at >= 0)):
    want[t] += (weight[t, j] if weighted else 1) * rows[at[t, j]]
  weight[at < 0] = np.nan
  got = combine.combine(rows, at, weight if weighted else None)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_route_sorts_probabilities_stably():
  logits = np.round(normal(0, 50, 7))                                # many ties
  weight, expert, counts = route.route(jnp.array(logits), 3)
  probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  want = np.argsort(-logits, axis=1, kind='stable')[:, :3]
  np.testing.assert_array_equal(expert, want)
  np.testing.assert_allclose(weight, np.take_along_axis(probs, want, 1), rtol=1e-5)
  np.testing.assert_array_equal(counts, np.bincount(want.reshape(-1), minlength=7))
