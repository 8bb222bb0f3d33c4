"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864)."""

import math
import typing

import jax
import jax.numpy as jnp


def table(positions: jax.Array, head_dim: int, base: float = 10000.0,
          scaling: typing.Any = None) -> tuple[jax.Array, jax.Array]:
  """Returns (cos, sin), each f32[B,T,1,P/2], of the angles position * base^(-2i/P).

  The table is made once per forward and shared by all layers, because trigonometry is slow.

  Args:
    positions: i32[B,T].
    head_dim:  P, even.
    scaling:   fields of `yarn`, or None.
  """
  rate = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
  rate, size = (rate, 1.0) if scaling is None else yarn(rate, base, **scaling)
  angle = positions[..., None, None].astype(jnp.float32) * rate      # [B, T, 1, P/2]
  return jnp.cos(angle) * size, jnp.sin(angle) * size


def yarn(rate: jax.Array, base: float, *, factor: float, length: int, fast: float = 32.0, slow: float = 1.0,
         size: float = 1.0, truncate: bool = True) -> tuple[jax.Array, float]:
  """Returns (rates f32[P/2], size) for a context `factor` times the `length` of training (arXiv:2309.00071).

  Pairs that turn more than `fast` times in `length` positions keep their rate. Pairs that turn less
  than `slow` times get their rate divided by `factor`. Pairs between get a mixture, linear in their number
  (section 3.2).

  Args:
    rate: f32[P/2].
    size: factor of cos and sin (section 3.4).
    truncate: whether the borders between the three kinds are whole numbers, which widens the mixture
    (gpt-oss:
      not).
  """
  pairs = rate.shape[0]
  border = lambda turns: pairs * math.log(length / (turns * 2 * math.pi)) / math.log(base)
  low, high = border(fast), border(slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * pairs - 1)
  slower = jnp.clip((jnp.arange(pairs) - low) / (high - low or 1e-3), 0, 1)
  return rate * (1 - slower) + rate / factor * slower, size


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
  Checkpoints of DeepSeek have their pairs as neighbours (arXiv:2104.09864 as written).
  """
  turned = 2 * cos_sin[0].shape[-1]                                  # P
  return rotate(jnp.concatenate([x[..., :turned:2], x[..., 1:turned:2], x[..., turned:]], axis=-1), cos_sin)
