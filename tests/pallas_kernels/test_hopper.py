"""Which kernel a GPU gets: Mosaic GPU's on Hopper where sizes are even and tiles full, else Triton's."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import hopper
from pallas_kernels.gmm import api as gmm
from pallas_kernels.route import api as route
from pallas_kernels.tgmm import api as tgmm
from tests.pallas_kernels.elsewhere import on

H100 = 'NVIDIA H100 80GB HBM3'


@pytest.mark.parametrize('kind, want', [
    (H100, 132), ('NVIDIA H100 PCIe', 132), ('NVIDIA H200', 132), ('NVIDIA GH200 480GB', 132),
    ('NVIDIA H20', 132),
    ('NVIDIA A100-SXM4-80GB', None), ('NVIDIA B200', None), ('NVIDIA L40', None), ('cpu', None)])
def test_hopper_is_known_by_its_name(kind, want):
  with on(kind):
    assert hopper.cores() == want


def test_without_a_mesh_it_is_the_gpu_of_this_process():
  assert hopper.cores() is None                                      # there is none


@pytest.mark.parametrize('change, want', [
    ({}, True), (dict(rows=1028), False), (dict(experts=9), False), (dict(dtype=jnp.float32), False),
    (dict(width=192), False), (dict(kind='NVIDIA A100-SXM4-80GB'), False)])
def test_what_fits(change, want):
  of = dict(rows=1024, experts=8, dtype=jnp.bfloat16, width=256, kind=H100) | change
  with on(of['kind']):
    assert hopper.fits(of['rows'], of['experts'], of['dtype'], 128, of['width']) == want


def kernels(f, *shapes):
  """Names of the kernels that f is lowered to for CUDA."""
  args = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
  text = jax.jit(f).trace(*args).lower(lowering_platforms=('cuda',)).as_text()
  return {name for name in ('mosaic_gpu_v2', 'triton') if name in text}


@pytest.mark.parametrize('kind, rows, width, listed, want', [
    (H100, 1024, 256, False, 'mosaic_gpu_v2'), (H100, 1024, 250, False, 'triton'),
    (H100, 512, 256, False, 'triton'),                               # 64 rows for an expert: few
    (H100, 1024, 256, True, 'triton'), (H100, 1024, 2048, True, 'mosaic_gpu_v2'),
    ('NVIDIA A100-SXM4-80GB', 1024, 256, False, 'triton')])
def test_products_get_the_kernel_that_is_faster(kind, rows, width, listed, want):
  """`listed` rows are gathered where the width of the product pays for it."""
  dtype = 'bfloat16'
  x, sizes, token = ((rows, 128), dtype), ((8,), 'int32'), [((rows,), 'int32')] * listed
  with on(kind):
    assert kernels(lambda x, w, sizes, *token: gmm.gmm(x, w, sizes, *token),
                   x, ((8, 128, width), dtype), sizes, *token) == {want}
    assert kernels(lambda x, dy, sizes, *token: tgmm.tgmm(x, dy, sizes, *token),
                   x, ((rows, width), dtype), sizes, *token) == {want}


def test_a_mesh_that_is_no_hopper_is_asked_before_the_process(monkeypatch):
  monkeypatch.setattr(jax, 'local_devices', lambda: pytest.fail('asked the process'))
  with on('NVIDIA A100-SXM4-80GB'):
    assert hopper.cores() is None


@pytest.mark.parametrize('kind', [H100, 'NVIDIA A100-SXM4-80GB'])
def test_kernels_lower_where_a_process_has_integers_of_64_bits(kind):
  x, w, sizes = ((1024, 128), 'bfloat16'), ((8, 128, 256), 'bfloat16'), ((8,), 'int32')
  with on(kind), jax.enable_x64(True):
    assert kernels(gmm.gmm, x, w, sizes) and kernels(tgmm.tgmm, x, x, sizes)
    assert kernels(lambda x: route.route(x, 2), ((64, 8), 'float32'))
