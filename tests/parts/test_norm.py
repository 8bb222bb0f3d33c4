"""Normalisation: its statistics are float32 whatever the dtype of what is normalised."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.parts import norm


@pytest.mark.parametrize('layer', [norm.RMSNorm, norm.LayerNorm])
def test_bfloat16_is_rounded_once(layer):
  x = (3.0 + jax.random.normal(jax.random.key(0), (64, 256))).astype(jnp.bfloat16)
  found = np.asarray(layer(256, epsilon=1e-6, rngs=nnx.Rngs(0))(x), np.float32)
  centred = np.asarray(x, np.float64)
  if layer is norm.LayerNorm:
    centred = centred - centred.mean(-1, keepdims=True)
  exact = centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-6)
  rounded = np.asarray(jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16), np.float32)
  assert np.mean(found != rounded) < 0.005                           # values at the middle of two neighbours
