"""Checks of D2MoE (arXiv:2504.15299): codes, planes, prefixes and values of `core/units/codes.py`."""

import jax.numpy as jnp
import numpy as np

from stmoe.core.units import codes


def nested_codes(case):
  c, q = case.config, case['q']
  most, size = c['bits_max'], c['group']
  assert list(q.shape) == c['shape']
  packed = codes.pack(jnp.asarray(q.reshape(-1)), most)
  case.assert_close('packed', packed)
  each = [np.asarray(codes.unpack(packed[at:at + 1], q.size)).reshape(q.shape) for at in range(most)]
  case.assert_close('planes', np.stack(each).astype(np.int8))
  scale = np.repeat(case['scale'], size, axis=1)                     # [o, i] of groups of i
  zero = (2 ** most - 1) / 2
  for bits in range(c['bits_min'], most + 1):
    prefix = np.asarray(codes.unpack(packed, q.size, bits)).reshape(q.shape)
    case.assert_close(f'q_{bits}', prefix)
    case.assert_close(f'dequant_{bits}', codes.value(prefix.astype(np.int64), scale, zero, bits, most))
    if bits > c['bits_min']:             # q_b = 2 q_(b-1) + the plane
      np.testing.assert_array_equal(prefix, 2 * case[f'q_{bits - 1}'] + each[bits - 1])
  # A grid of our own has the same zero, and gives back its codes.
  ours = codes.nested(jnp.asarray(case['scale'] * 2 ** (most - 1), jnp.float32), most)
  np.testing.assert_allclose(ours[0], case['scale'], rtol=1e-6)
  assert (np.asarray(ours[1]) == zero).all()
  values = jnp.asarray(case[f'dequant_{most}'], jnp.float32)
  again = codes.code(values, jnp.asarray(scale, jnp.float32), jnp.float32(zero), most)
  np.testing.assert_array_equal(again, q)
