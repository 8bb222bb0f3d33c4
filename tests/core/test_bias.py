"""The rules of selection biases."""

import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.core import bias as bias_lib


@pytest.mark.parametrize('load, expected', [
    ([4, 2, 0], [-1, 0, 1]),
    ([3, 2, 2], [-1, 1, 1]),                         # mean 7/3: two are below it
    ([5, 5, 5], [0, 0, 0]), ([0, 0, 0], [0, 0, 0]),
    # The sum of float32 numbers would be even: 2**24 + 1 is none.
    ([2**23, 2**23, 2**23 + 1], [1, 1, -1])])
def test_sign_is_exact(load, expected):
  assert bias_lib.sign(jnp.array(load, jnp.float32)).tolist() == expected


def test_update_rules():
  load, bias = jnp.array([6.0, 2.0, 1.0]), jnp.array([1.0, 2.0, 3.0])
  # Mean 3: one expert above, two below; re-centred by the mean step, u / 3.
  np.testing.assert_allclose(bias_lib.update(bias, load, 0.3), [0.7, 2.3, 3.3], rtol=1e-6)
  np.testing.assert_allclose(bias_lib.update(bias, load, 0.3, centred=True), [0.6, 2.2, 3.2], rtol=1e-6)
  np.testing.assert_allclose(bias_lib.update(bias, load, 0.3, rule='magnitude'), [0.7, 2.1, 3.2], rtol=1e-6)
  assert bias_lib.update(bias, load, 0.0).tolist() == bias.tolist()
