"""Sinusoidal positions: fixed vectors that embedded tokens get added (arXiv:1706.03762, section 3.5)."""

import jax
import jax.numpy as jnp

BASE = 10_000.0


def vectors(positions: jax.Array, d_model: int) -> jax.Array:
  """Returns f32[B,T,D]: sin of position * BASE^(-j / (D/2 - 1)), j = 0, 1, ..., D/2 - 1; then the cosines.

  The last rate is 1 / BASE itself, and sines come before cosines: as in tensor2tensor, fairseq and NLLB. The
  paper has D/2 in place of D/2 - 1, and sines and cosines in turn.

  Args:
    positions: i32[B,T].
    d_model:   D, even and at least 4.

  >>> [round(float(x), 4) for x in vectors(jnp.array([[1]]), 4)[0, 0]]
  [0.8415, 0.0001, 0.5403, 1.0]
  """
  half = d_model // 2
  rate = BASE ** (-jnp.arange(half) / (half - 1))                    # [D/2]
  angle = positions[..., None].astype(jnp.float32) * rate            # [B, T, D/2]
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
