"""What every scaling of rotary positions must do: rates of pairs, of each row by its own length."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.conform import generic

PAIRS, BASE = 4, 1e4
RATE = np.float32(BASE) ** (-np.arange(PAIRS, dtype=np.float32) / PAIRS)
LENGTHS = np.array([3, 20, 64], np.float32).reshape(3, 1, 1, 1)
OF_SCALINGS = dict(factor=4.0, length=16, short=(1.0, 1.1, 1.2, 1.3), long=(1.0, 2.0, 3.0, 4.0))


def _build(name, **fields):
  known = generic.known(lookup.constructor('rotary_scaling', name), OF_SCALINGS | fields)
  return lookup.constructor('rotary_scaling', name)(**known)


def answers(name: str, **fields) -> None:
  """It returns (rates f32[P/2] or [B,1,1,P/2], size), finite and above 0, also in a program."""
  scaling = _build(name, **fields)
  for lengths in (LENGTHS, LENGTHS[:1]):
    rates, size = jax.jit(lambda lengths: scaling(jnp.asarray(RATE), BASE, lengths))(lengths)
    rows = len(lengths)
    for what, a, last in (('rates', rates, PAIRS), ('size', jnp.asarray(size), 1)):
      assert a.shape in ((last,), (rows, 1, 1, last), () if last == 1 else None), (
          f'{what} are of {list(a.shape)}; wanted: {[last]}, of all rows alike, or {[rows, 1, 1, last]}')
      assert bool(jnp.all(jnp.isfinite(a) & (a > 0))), f'{what} are {np.ravel(a).tolist()}; wanted: above 0'


def rows_do_not_meet(name: str, **fields) -> None:
  """The length of one row does not change the rates of another."""
  scaling = _build(name, **fields)
  wide = lambda answer, rows: [np.broadcast_to(a, (rows, 1, 1, last)) for a, last in zip(answer, (PAIRS, 1))]
  whole = wide(scaling(jnp.asarray(RATE), BASE, jnp.asarray(LENGTHS)), len(LENGTHS))
  for row, length in enumerate(LENGTHS):
    for together, alone in zip(whole, wide(scaling(jnp.asarray(RATE), BASE, jnp.asarray(length)[None]), 1)):
      np.testing.assert_allclose(alone[0], together[row], rtol=1e-6)
