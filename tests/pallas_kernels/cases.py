"""Rows by group that grouped products are tested on, and how near to their reference they must come."""

from hypothesis import strategies
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

# sizes, M: with tiles of 16 rows.
SIZES = {
    'ragged': ([7, 0, 20, 13], 50),
    'whole tiles': ([16, 32, 16], 64),
    'one takes all': ([0, 40, 0], 40),
    'single rows': ([1] * 9, 17),
    'all empty': ([0, 0], 20),
    'one group': ([33], 40),
    'last rows of nobody': ([3, 5, 2], 70),
}


def normal(seed, *shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def rows(seed, sizes, number, width, dtype=jnp.float32):
  """Returns [M,width] of which those that belong to nobody are NaN."""
  return normal(seed, number, width, dtype=dtype).at[sum(sizes):].set(jnp.nan)


def close(got, want, dtype):
  """Asserts round-off: float32 relative to the largest entry, bfloat16 one unit in the last place."""
  assert got.dtype == want.dtype == dtype and got.shape == want.shape
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  if got.size:
    rtol = 0 if dtype == jnp.float32 else 2**-7                      # the spacing above a power of two
    np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-5 * np.abs(want).max())


def races(call):
  """Returns whether `call(interpret)` read or wrote what a copy was still writing."""
  from jax._src.pallas.mosaic.interpret import interpret_pallas_call
  pltpu.reset_tpu_interpret_mode_state()
  call(pltpu.InterpretParams(detect_races=True))
  return interpret_pallas_call.races.races_found


@strategies.composite
def sorted_rows(draw):
  """Draws (sizes, M)."""
  sizes = draw(strategies.lists(strategies.integers(0, 40), min_size=1, max_size=6))
  return sizes, max(1, sum(sizes) + draw(strategies.integers(0, 20)))
