"""Random perturbations: what range they fill, what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import noise


def test_jitter_fills_both_sides_of_one_evenly():
  x = 2 * jnp.ones(4000)
  factor = np.asarray(noise.jitter(x, 0.1, jax.random.key(0))) / 2
  np.testing.assert_allclose([factor.min(), factor.max()], [0.9, 1.1], atol=1e-3)
  np.testing.assert_allclose(factor.mean(), 1.0, atol=3e-3)          # 0.058 / sqrt(4000), three times
  np.testing.assert_allclose(np.mean(factor < 1), 0.5, atol=0.03)
  assert noise.jitter(x, 0.1, None) is x


def test_dropout_keeps_the_mean_and_shares_masks():
  x = jnp.ones((200, 5, 4))
  dropped = np.asarray(noise.dropout(x, 0.25, jax.random.key(0), (-2,)))
  assert sorted(set(dropped.ravel().tolist())) == [0.0, np.float32(1 / 0.75)]
  np.testing.assert_allclose(np.mean(dropped == 0), 0.25, atol=0.05)
  assert (dropped == dropped[:, :1]).all() and not (dropped == dropped[..., :1]).all()
