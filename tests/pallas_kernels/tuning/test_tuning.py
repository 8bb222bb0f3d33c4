"""Measured tiles are found by kind of device, operation, dtype and shape, and kernels take them."""

import json

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import triton
from pallas_kernels import tuning
from pallas_kernels.gmm import triton as gpu
from pallas_kernels.gmm import tpu


def row(op, shape, seconds, dtype='bfloat16', **tiles):
  return dict(op=op, shape=shape, dtype=dtype, tiles=tiles or None, seconds=seconds)


@pytest.fixture(autouse=True)
def tables(tmp_path, monkeypatch):
  rows = [row('gmm', [64, 128, 256, 4], 2., m=16, k=128, n=128),
          row('gmm', [64, 128, 256, 4], 1., m=32, k=128, n=128),
          row('gmm', [256, 128, 256, 4], 1., m=64, k=128, n=256),
          row('tgmm', [64, 128, 256, 4], 1., m=48, k=128, n=128),
          row('gmm_triton', [64, 128, 512, 4], 1., m=16, n=64, k=32, warps=4, stages=2),
          row('combine', [64, 128, 256, 4], 1.)]
  (tmp_path / 'cpu.json').write_text(json.dumps(dict(rows=rows)), encoding='utf-8')
  monkeypatch.setattr(tuning, 'FOLDER', tmp_path)
  tuning.table.cache_clear()
  yield
  tuning.table.cache_clear()


@pytest.mark.parametrize('kind, op, rows, dtype, want', [
    ('cpu', 'gmm', 64, 'bfloat16', 32), ('cpu', 'gmm', 100, 'bfloat16', 32),
    ('cpu', 'gmm', 200, 'bfloat16', 64), ('cpu', 'tgmm', 64, 'bfloat16', 48),
    ('cpu', 'gmm', 1000, 'bfloat16', None), ('cpu', 'gmm', 64, 'float32', None),
    ('cpu', 'combine', 64, 'bfloat16', None), ('TPU v5 lite', 'gmm', 64, 'bfloat16', None),
    (None, 'gmm', 64, 'bfloat16', None)])
def test_fastest_tiles_of_the_nearest_rows(kind, op, rows, dtype, want):
  found = tuning.tiles(op, kind, (rows, 128, 256, 4), dtype)
  assert (found and found['m']) == want


def test_other_matrices_were_not_measured():
  assert tuning.tiles('gmm', 'cpu', (64, 128, 1024, 4), 'bfloat16') is None


@pytest.mark.parametrize('kernel, outer, block', [
    (tpu.gmm, 256, 'bf16[32,128]'), (gpu.gmm, 512, 'bf16[16,32]')], ids=['tpu', 'gpu'])
def test_kernels_take_the_tiles_of_the_devices_of_the_mesh(kernel, outer, block):
  """`block` is the one of x."""
  of = jax.ShapeDtypeStruct
  shapes = of((64, 128), jnp.bfloat16), of((4, 128, outer), jnp.bfloat16), of((4,), jnp.int32)
  trace = lambda: str(jax.make_jaxpr(lambda *args: kernel(*args))(*shapes))
  assert tuning.kind() is None and block not in trace()
  with jax.set_mesh(jax.make_mesh((1,), ('data',), devices=jax.devices('cpu')[:1])):
    assert tuning.kind() == 'cpu' and block in trace()


@pytest.mark.parametrize('itemsize', [2, 4])
def test_candidates_for_gpus_are_the_guess_and_others_that_fit(itemsize):
  guess, *others = found = gpu.candidates(8192, 4096, 14336, 8, itemsize)
  assert guess == gpu.default_tiles(8192, 4096, 14336, 8, itemsize) and len(set(found)) == len(found) > 12
  assert all(t.stages * (t.m + t.n) * t.k * itemsize <= triton.SHARED for t in others)


def test_shipped_tables_can_be_used(monkeypatch):
  monkeypatch.undo()
  for path in tuning.FOLDER.glob('*.json'):
    table = json.loads(path.read_text(encoding='utf-8'))
    assert tuning.file(table['device']) == path.stem and table['commands'] and table['jax']
    assert all({'op', 'shape', 'dtype', 'tiles', 'seconds'} <= row.keys() for row in table['rows'])
