"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864)."""

import jax.numpy as jnp


def table(positions, head_dim, base=10000.0):
  """Returns (cos, sin), each f32[B,T,1,P/2], of the angles position * base^(-2i/P).

  Made once per forward and shared by all layers, because trigonometry is slow.

  Args:
    positions: i32[B,T].
    head_dim:  P, even.
  """
  rate = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  angle = positions[..., None, None].astype(jnp.float32) * rate      # [B, T, 1, P/2]
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x, cos_sin):
  """Returns x [B,T,H,P] with the pairs (i, i + P/2) of each head turned by their angles.

  q_i . k_j after rotation depends on the positions only through i - j. Pairs are the two
  halves of a head (as in Llama checkpoints), not neighbours.
  """
  cos, sin = (a.astype(x.dtype) for a in cos_sin)
  first, second = jnp.split(x, 2, axis=-1)                           # [B, T, H, P/2]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
