"""Rows by group that grouped products of TPUs are tested on, and races between their copies."""

from hypothesis import strategies
from jax.experimental.pallas import tpu as pltpu
import pytest

from tests.pallas_kernels import agree

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
# (case, dtype): the default suite has the ragged rows, which have all kinds of tiles, and rows of nobody.
USUAL = ('ragged', 'float32'), ('ragged', 'bfloat16'), ('last rows of nobody', 'float32')
TYPED = [pytest.param(case, dtype, marks=[pytest.mark.slow] * ((case, dtype) not in USUAL))
         for case in SIZES for dtype in ('float32', 'bfloat16')]


def rows(seed, sizes, number, width, dtype):
  """Returns [M,width] of which those that belong to nobody are NaN."""
  return agree.beyond(agree.normal(seed, (number, width), dtype), sum(sizes))


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
