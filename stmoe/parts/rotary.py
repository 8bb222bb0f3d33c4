"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864)."""

import typing

import jax
import jax.numpy as jnp


def table(positions: jax.Array, head_dim: int, base: float = 10000.0,
          scaling: typing.Callable | None = None, room: int | None = None) -> tuple[jax.Array, jax.Array]:
  """Returns (cos, sin), each f32[B,T,1,P/2], of the angles position * base^(-2i/P).

  The table is made once per forward and shared by all layers, because trigonometry is slow.

  Args:
    positions: i32[B,T].
    head_dim:  P, even.
    scaling:   of `parts/rotary_scaling`, or None.
    room:      positions that a text may reach while it is written, by which a scaling goes then; None = each
      row's own positions.
  """
  rate = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  size = 1.0
  if scaling is not None:
    length = jnp.max(positions, axis=1) + 1 if room is None else jnp.array([room])
    rate, size = scaling(rate, base, length.astype(jnp.float32)[:, None, None, None])
  angle = positions[..., None, None].astype(jnp.float32) * rate      # [B, T, 1, P/2]
  return jnp.cos(angle) * size, jnp.sin(angle) * size


def rotate(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Returns x [B,T,H,P'] with the pairs (i, i + P/2) of each head turned by their angles, [B,T,1,P/2].

  q_i . k_j after rotation depends on the positions only through i - j. Pairs are the two
  halves of a head (as in Llama checkpoints), not neighbours. The numbers from P on, where a head has more
  than the angles are for, stay as they are (GPT-J; GLM-4.5 turns half of each head).
  """
  cos, sin = (a.astype(x.dtype) for a in cos_sin)
  turned = 2 * cos.shape[-1]                                         # P
  first, second = jnp.split(x[..., :turned], 2, axis=-1)             # [B, T, H, P/2]
  return jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin, x[..., turned:]], axis=-1)


def rotate_neighbours(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Returns x [B,T,H,P'] with the pairs (2i, 2i + 1) of each head turned; all first numbers then come first.

  The order of the result is `rotate`'s. The order does not matter to a product of two vectors so ordered.
  Checkpoints of DeepSeek and ERNIE have their pairs as neighbours (arXiv:2104.09864 as written).
  """
  turned = 2 * cos_sin[0].shape[-1]                                  # P
  return rotate(jnp.concatenate([x[..., :turned:2], x[..., 1:turned:2], x[..., turned:]], axis=-1), cos_sin)
