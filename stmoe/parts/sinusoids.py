"""Sinusoids: fixed vectors of positions (arXiv:1706.03762, section 3.5), of places in a grid and of times."""

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


def turning(angles: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
  """Returns (sines, cosines) f32[...,F/2] of angle * BASE^(-i / (F/2)), i = 0, ..., F/2 - 1.

  Args:
    angles: f32[...], such as times; they need not be whole numbers.
    width:  F, even.

  >>> [[round(float(x), 4) for x in part] for part in turning(jnp.array(1.0), 4)]
  [[0.8415, 0.01], [0.5403, 0.9999]]
  """
  rate = BASE ** (-jnp.arange(width // 2) / (width // 2))            # [F/2]
  angle = angles[..., None].astype(jnp.float32) * rate               # [..., F/2]
  return jnp.sin(angle), jnp.cos(angle)


def grid(side: int, d_model: int) -> jax.Array:
  """Returns f32[N,D] of the N = side^2 places of a grid, row by row: of its column, then of its row.

  Each half is [sines, cosines] of `turning`, D/4 each (MAE, arXiv:2111.06377; DiT, arXiv:2212.09748).

  >>> [round(float(x), 4) for x in grid(2, 4)[1]]
  [0.8415, 0.5403, 0.0, 1.0]
  """
  row, column = jnp.divmod(jnp.arange(side * side), side)            # [N]
  return jnp.concatenate([*turning(column, d_model // 2), *turning(row, d_model // 2)], axis=-1)
