"""Times `gmm`, both ways, against one dense matmul of the same FLOPs on the device of this process.

'gmm_listed' has the rows of the first product by a list of tokens, and 'gmm_gathered' has them gathered by
XLA before: where the second is faster, a kernel should not load them by a list.

  python -m pallas_kernels.gmm.bench --tune --json pallas_kernels/tuning/tpu_v5_lite.json
"""

import functools

import jax

from pallas_kernels import benchmark
from pallas_kernels.gmm import api
from pallas_kernels.gmm import gpu
from pallas_kernels.gmm import tpu

TUNED = dict(tpu=tpu, gpu=gpu)


def rows(tune, rounds):
  """Yields a result for every shape, way and choice of tiles."""
  for tokens, width, hidden, experts, k in benchmark.models().values():
    sizes = benchmark.sizes(tokens, experts, k)
    for inner, outer in ((width, hidden), (hidden, width)):
      x, w = benchmark.normal(0, tokens * k, inner), benchmark.normal(1, experts, inner, outer)
      dense = functools.partial(jax.jit(jax.numpy.dot), x, w[0])
      shape = (tokens * k, inner, outer, experts)
      flops = 2 * tokens * k * inner * outer
      if inner == width and not tune:
        token = benchmark.token(tokens, k)
        for op, run in benchmark.listed('gmm', api.gmm).items():
          yield benchmark.row(op, shape, None, flops, functools.partial(run, x[:tokens], w, sizes, token),
                              dense, rounds)
      for transposed in (False, True):
        w = w.swapaxes(1, 2) if transposed else w
        for tiles in benchmark.tiles(TUNED, shape, tune):
          run = functools.partial(_product(transposed, tiles), x, w, sizes)
          yield benchmark.row('gmm_transposed' if transposed else 'gmm', shape, tiles and tiles._asdict(),
                              flops, run, dense, rounds)


def _product(transposed, tiles):
  if tiles is None:
    return jax.jit(functools.partial(api.gmm, transposed=transposed, target=benchmark.platform()))
  return jax.jit(functools.partial(TUNED[benchmark.platform()].gmm, transposed=transposed, tiles=tiles))


if __name__ == '__main__':
  benchmark.main('pallas_kernels.gmm.bench', rows)
