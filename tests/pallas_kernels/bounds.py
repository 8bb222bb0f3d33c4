"""Makes interpreted kernels strict: on a GPU nobody clips an address.

Interpreted, loads beyond an array are clipped and stores beyond it dropped, which hides a missing mask.
"""

import jax.numpy as jnp
import pytest

from pallas_kernels import triton

load, store = triton.load, triton.store


@pytest.fixture(autouse=True)
def strict(request, monkeypatch):
  """Tiles that reach out of their array without a mask become NaN (indices: far out of range)."""
  if request.node.get_closest_marker('aot') is None:                 # compiled kernels stay as they are
    monkeypatch.setattr(triton, 'load', lambda ref, where=None: _spoil(load(ref, where), ref, where))
    monkeypatch.setattr(triton, 'store',
                        lambda ref, tile, where=None: store(ref, _spoil(tile, ref, where), where))


def _spoil(tile, ref, where):
  indices = ref.transforms[-1].indices
  out = [(jnp.asarray(at) < 0) | (jnp.asarray(at) >= size) for at, size in zip(indices, ref.ref.shape)]
  where = jnp.broadcast_to(True if where is None else where, ref.shape)
  bad = jnp.any(sum(jnp.broadcast_to(o, ref.shape) for o in out).astype(bool) & where)
  return jnp.where(bad, jnp.nan if jnp.issubdtype(tile.dtype, jnp.floating) else 2 ** 30, tile)
