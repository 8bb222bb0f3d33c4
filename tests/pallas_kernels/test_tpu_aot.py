"""Compilers for v5e, v5p and v6e take every kernel at the sizes of published models, with default tiles.

Rows are those of one device with T tokens of k choices, as benchmarks have them. Half a minute a chip; chips
compile the same kernel in different ways, so none stands for another.
"""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.gmm import api as gmm
from pallas_kernels.tgmm import api as tgmm
from stmoe.analysis import program
from stmoe.train import topology

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
  return jax.jit(f).lower(*args).compile()


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
