"""Times `tgmm` against one dense matmul of the same FLOPs on the device of this process.

'tgmm_listed' has the rows of tokens by a list, and 'tgmm_gathered' has them gathered by XLA before: where the
second is faster, a kernel should not load them by a list.

  python -m pallas_kernels.tgmm.bench --tune --json pallas_kernels/tuning/tpu_v5_lite.json
"""

import functools

import jax

from pallas_kernels import benchmark
from pallas_kernels.tgmm import api
from pallas_kernels.tgmm import gpu
from pallas_kernels.tgmm import tpu

TUNED = dict(tpu=tpu, gpu=gpu)


def rows(tune, rounds):
  """Yields a result for every shape and choice of tiles."""
  for tokens, width, hidden, experts, k in benchmark.models().values():
    sizes = benchmark.sizes(tokens, experts, k)
    for inner, outer in ((width, hidden), (hidden, width)):
      x, dy = benchmark.normal(0, tokens * k, inner), benchmark.normal(1, tokens * k, outer)
      dense = functools.partial(jax.jit(lambda x, dy: x.T @ dy), x, dy)
      shape = (tokens * k, inner, outer, experts)
      flops = 2 * tokens * k * inner * outer
      if inner == width and not tune:
        token = benchmark.token(tokens, k)
        for op, run in benchmark.listed('tgmm', api.tgmm).items():
          yield benchmark.row(op, shape, None, flops, functools.partial(run, x[:tokens], dy, sizes, token),
                              dense, rounds)
      for tiles in benchmark.tiles(TUNED, shape, tune):
        run = functools.partial(_product(tiles), x, dy, sizes)
        yield benchmark.row('tgmm', shape, tiles and tiles._asdict(), flops, run, dense, rounds)


def _product(tiles):
  if tiles is None:
    return jax.jit(functools.partial(api.tgmm, target=benchmark.platform()))
  return jax.jit(functools.partial(TUNED[benchmark.platform()].tgmm, tiles=tiles))


if __name__ == '__main__':
  benchmark.main('pallas_kernels.tgmm.bench', rows)
