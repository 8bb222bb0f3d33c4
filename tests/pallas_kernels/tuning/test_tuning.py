"""Measured tiles are found by kind of device, operation, dtype and shape, and kernels take them."""

import json

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import tuning
from pallas_kernels.gmm import triton as gpu
from pallas_kernels.gmm import tpu
from pallas_kernels.tgmm import triton as grad
from tests.pallas_kernels.elsewhere import on


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
    ('cpu', 'combine', 64, 'bfloat16', None), ('TPU v5 lite', 'gmm', 64, 'bfloat16', None)])
def test_fastest_tiles_of_the_nearest_rows(kind, op, rows, dtype, want):
  found = tuning.tiles(op, kind, (rows, 128, 256, 4), dtype)
  assert (found and found['m']) == want


def test_other_matrices_were_not_measured():
  assert tuning.tiles('gmm', 'cpu', (64, 128, 1024, 4), 'bfloat16') is None


@pytest.mark.parametrize('kernel, outer, block', [
    (tpu.gmm, 256, 'bf16[32,128]'), (gpu.gmm, 512, 'bf16[16,32]')], ids=['tpu', 'gpu'])
def test_kernels_take_the_tiles_of_the_mesh_or_of_this_process(kernel, outer, block):
  """`block` is the one of x. What a benchmark times without a mesh is what a user gets."""
  of = jax.ShapeDtypeStruct
  shapes = of((64, 128), jnp.bfloat16), of((4, 128, outer), jnp.bfloat16), of((4,), jnp.int32)
  trace = lambda: str(jax.make_jaxpr(lambda *args: kernel(*args))(*shapes))
  assert block in trace()
  with jax.set_mesh(jax.make_mesh((1,), ('data',), devices=jax.devices('cpu')[:1])):
    assert block in trace()
  with on('TPU v5 lite', 1):
    assert block not in trace()


@pytest.mark.parametrize('itemsize', [2, 4])
@pytest.mark.parametrize('kind, kib', [
    ('NVIDIA H100 80GB HBM3', 227), ('NVIDIA GH200 480GB', 227), ('NVIDIA B200', 227),
    ('NVIDIA A100-SXM4-80GB', 163), ('NVIDIA L40S', 99), ('NVIDIA A10', 99), ('Tesla V100-SXM2-16GB', 96),
    ('NVIDIA GeForce RTX 4090', 99), ('Tesla T4', 64)])
def test_candidates_for_gpus_fit_the_gpu(kind, kib, itemsize):
  for kernel in (gpu, grad):
    with on(kind):
      guess, *others = found = kernel.candidates(8192, 4096, 14336, 8, itemsize)
    assert len(set(found)) == len(found) > 12
    assert all(t.stages * kernel.loaded(t) * itemsize <= kib * 1024 for t in found)
    assert kib < 227 or guess == kernel.default_tiles(8192, 4096, 14336, 8, itemsize)


def test_shipped_tables_can_be_used(monkeypatch):
  monkeypatch.undo()
  for path in tuning.FOLDER.glob('*.json'):
    table = json.loads(path.read_text(encoding='utf-8'))
    assert tuning.file(table['device']) == path.stem and table['commands'] and table['jax']
    assert all({'op', 'shape', 'dtype', 'tiles', 'seconds'} <= row.keys() for row in table['rows'])
