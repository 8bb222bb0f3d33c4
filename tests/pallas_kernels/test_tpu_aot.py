"""Compilers for v5e, v5p and v6e take every kernel at the sizes of published models, with default tiles.

Rows are those of one device with T tokens of k choices, as benchmarks have them. Half a minute a chip; chips
compile the same kernel in different ways, so none stands for another.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.combine import api as combine
from pallas_kernels.combine import portable
from pallas_kernels.gmm import api as gmm
from pallas_kernels.route import api as route
from pallas_kernels.tgmm import api as tgmm
from stmoe.aot import program
from stmoe.aot import topology

pytestmark = pytest.mark.aot

CHIPS = ('v5e:1x1', 'v5p:2x2x1', 'v6e:1x1')
# Mixtral 8x7B with 4,096 tokens, DeepSeekMoE 16B and OLMoE 1B-7B with 16,384: T, D, F, E, k.
MODELS = dict(mixtral=(4096, 4096, 14336, 8, 2), deepseek_moe=(16384, 2048, 1408, 64, 6),
              olmoe=(16384, 2048, 1024, 64, 8))
BF16, F32 = jnp.bfloat16, jnp.float32


def compiled(where, f, *args):
  """Compiles `f` for one device of a topology that is not there."""
  _, devices, _ = topology.devices(where)
  place = jax.sharding.SingleDeviceSharding(devices[0])
  args = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in args]
  cached = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)          # nothing is read from it without a device
  try:
    return jax.jit(f).lower(*args).compile()
  finally:
    jax.config.update('jax_enable_compilation_cache', cached)


def products(dims, dtype):
  """Returns dict name -> (function, its arguments) of gmm both ways and of tgmm between widths `dims`."""
  rows, inner, outer, experts = dims
  sizes = ((experts,), jnp.int32)
  x, dy, w = ((rows, inner), dtype), ((rows, outer), dtype), ((experts, inner, outer), dtype)
  return dict(forward=(lambda x, w, sizes: gmm.gmm(x, w, sizes, target='tpu'), x, w, sizes),
              dlhs=(lambda dy, w, sizes: gmm.gmm(dy, w, sizes, transposed=True, target='tpu'), dy, w, sizes),
              drhs=(lambda x, dy, sizes: tgmm.tgmm(x, dy, sizes, target='tpu'), x, dy, sizes))


@pytest.mark.parametrize('where', CHIPS)
@pytest.mark.parametrize('model, dtype', [('mixtral', BF16), ('deepseek_moe', BF16), ('olmoe', BF16),
                                          ('olmoe', F32)])
@pytest.mark.parametrize('way', ['up', 'down'])
@pytest.mark.parametrize('product', ['forward', 'dlhs', 'drhs'])
def test_grouped_products_compile(where, model, dtype, way, product):
  tokens, width, hidden, experts, k = MODELS[model]
  dims = (width, hidden) if way == 'up' else (hidden, width)
  f, *args = products((tokens * k, *dims, experts), dtype)[product]
  found = compiled(where, f, *args)
  assert found.cost_analysis()['flops'] == pytest.approx(2 * tokens * k * width * hidden, rel=1e-3)
  # Beside the result nothing is stored but tables of visits: no matrix is transposed, no row padded.
  assert program.memory(found)['temporaries'] < 2**23


@pytest.mark.parametrize('where', CHIPS)
@pytest.mark.parametrize('model, dtype', [('mixtral', BF16), ('deepseek_moe', BF16), ('olmoe', BF16),
                                          ('olmoe', F32)])
def test_combine_moves_less_than_the_gathers_of_xla(where, model, dtype):
  tokens, width, _, _, k = MODELS[model]
  args = ((tokens * k, width), dtype), ((tokens, k), jnp.int32), ((tokens, k), F32)
  ours = compiled(where, lambda *args: combine.combine(*args, target='tpu'), *args)
  xla = compiled(where, portable.combine, *args)
  assert ours.cost_analysis()['bytes accessed'] < xla.cost_analysis()['bytes accessed'] / 2
  assert program.memory(ours)['temporaries'] < 2**25                 # places and weights in another layout


@pytest.mark.parametrize('where', CHIPS)
@pytest.mark.parametrize('shape', [(10, 3, 100), (1, 1, 1), (333, 2, 130), (10, 64, 8192)])
@pytest.mark.parametrize('dtype', [BF16, F32])
def test_combine_compiles_at_any_size(where, shape, dtype):
  tokens, k, width = shape
  compiled(where, lambda *args: combine.combine(*args, target='tpu'),
           ((tokens * k, width), dtype), ((tokens, k), jnp.int32))


@pytest.mark.parametrize('where', CHIPS)
@pytest.mark.parametrize('tokens, experts, k', [(4096, 8, 2), (16384, 64, 6), (16384, 64, 8), (16384, 256, 8),
                                                (10, 3, 3), (100, 4096, 8)])
def test_route_compiles(where, tokens, experts, k):
  compiled(where, lambda x: route.route(x, k, target='tpu'), ((tokens, experts), F32))


@pytest.mark.parametrize('where', CHIPS)
@pytest.mark.parametrize('dims', [(1000, 100, 200, 3), (1, 1, 1, 1), (77, 2050, 130, 5), (64, 1, 128, 4),
                                  (64, 128, 1, 4)])
@pytest.mark.parametrize('product', ['forward', 'dlhs', 'drhs'])
def test_grouped_products_compile_at_any_size(where, dims, product):
  f, *args = products(dims, BF16)[product]
  compiled(where, f, *args)


@pytest.mark.parametrize('setting', [lambda: jax.enable_x64(True),
                                     *[functools.partial(jax.default_matmul_precision, name)
                                       for name in ('high', 'highest')]], ids=['x64', 'high', 'highest'])
def test_settings_of_a_process_do_not_matter(setting):
  tokens, k, width, experts = 100, 2, 256, 4
  with setting():
    for f, *args in products((tokens * k, width, 384, experts), BF16).values():
      compiled('v5e:1x1', f, *args)
    compiled('v5e:1x1', lambda *args: combine.combine(*args, target='tpu'),
             ((tokens * k, width), BF16), ((tokens, k), jnp.int32), ((tokens, k), F32))
    compiled('v5e:1x1', lambda x: route.route(x, k, target='tpu'), ((tokens, experts), F32))


@pytest.mark.parametrize('where', ['v5e:2x4', 'v5p:2x2x1'])
def test_every_device_of_a_mesh_runs_its_own(where):
  """Rows, and what they are sorted by, are split; a program that names no target is lowered for the mesh."""
  _, devices, _ = topology.devices(where)
  mesh = jax.make_mesh((len(devices),), ('data',), devices=devices)
  split = jax.P('data')

  def local(x, w, sizes, at):
    y = gmm.gmm(x, w, sizes[0])
    return combine.combine(y, at), tgmm.tgmm(x, y, sizes[0])[None], route.route(y, 2)[2][None]

  with jax.set_mesh(mesh):
    f = jax.shard_map(local, in_specs=(split, jax.P(), split, split), out_specs=split, check_vma=False)
    placed = lambda shape, dtype, spec: jax.ShapeDtypeStruct(shape, dtype,
                                                             sharding=jax.NamedSharding(mesh, spec))
    args = (placed((len(devices) * 200, 256), BF16, split), placed((4, 256, 128), BF16, jax.P()),
            placed((len(devices), 4), jnp.int32, split), placed((len(devices) * 100, 2), jnp.int32, split))
    text = jax.jit(f).lower(*args).compile().as_text()
  assert text.count('tpu_custom_call') >= 4 and 'all-' not in text
