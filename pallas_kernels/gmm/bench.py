"""Times `gmm`, both ways, against a dense matmul of the same FLOPs on the device of this process.

'gmm_listed' has the rows of the first product by a list of tokens, and 'gmm_gathered' has them gathered by
XLA before. Where 'gmm_gathered' is faster, a kernel should not load rows by a list. On GPUs 'gmm' is
whichever of 'gmm_triton' and 'gmm_mosaic' users get; 'gmm tokamax' and 'gmm torch' are other libraries, where
installed.

  python -m pallas_kernels.gmm.bench --tune --json pallas_kernels/tuning/tpu_v5_lite.json
"""

import functools

from pallas_kernels import benchmark
from pallas_kernels import peers
from pallas_kernels.gmm import api
from pallas_kernels.gmm import mosaic
from pallas_kernels.gmm import tpu
from pallas_kernels.gmm import triton

KERNELS = dict(tpu={'': tpu}, gpu={'_triton': triton, '_mosaic': mosaic})


def cases(models, tune):
  """Yields a Case for every shape and way."""
  for tokens, width, hidden, experts, k in models:
    for inner, outer in ((width, hidden), (hidden, width)):
      shape = tokens * k, inner, outer, experts
      flops = 2 * tokens * k * inner * outer
      if inner == width and not tune:
        yield _listed(shape, flops, tokens, k)
      for op in ('gmm', 'gmm_transposed'):
        transposed = op == 'gmm_transposed'
        inputs = functools.partial(_inputs, tokens, k, inner, outer, experts, transposed)
        variants = [_variant(name, module.gmm, transposed, tiles=tiles)
                    for name, module, tiles in benchmark.kernels(KERNELS, op, shape, tune)]
        if not tune:
          user = _variant(op, api.gmm, transposed, target=benchmark.platform())
          variants = [user, *(v for v in variants if v.op != op), *peers.variants(op)]
        yield benchmark.Case(shape, flops, inputs, benchmark.jitted('dense', _dense), variants)


def _inputs(tokens, k, inner, outer, experts, transposed):
  """(x [M,K], w [E,K,N] or [E,N,K], sizes, matrix of the floor [K,N])."""
  w = benchmark.normal(1, experts, *((outer, inner) if transposed else (inner, outer)))
  return (benchmark.normal(0, tokens * k, inner), w, benchmark.sizes(tokens, experts, k),
          benchmark.normal(2, inner, outer))


def _dense(x, w, sizes, matrix):
  return x @ matrix


def _variant(op, call, transposed, tiles=None, **options):
  call = functools.partial(call, transposed=transposed, **options)
  return benchmark.jitted(op, _without_floor(call if tiles is None else functools.partial(call, tiles=tiles)),
                          tiles)


def _without_floor(call):
  return lambda x, w, sizes, matrix: call(x, w, sizes)


def _listed(shape, flops, tokens, k):
  """The Case of rows by a list of tokens."""
  _, inner, outer, experts = shape

  def inputs():
    x, w, sizes, matrix = _inputs(tokens, k, inner, outer, experts, transposed=False)
    return x, w, sizes, matrix, benchmark.token(tokens, k)
  call = functools.partial(api.gmm, target=benchmark.platform())
  by_list = lambda f: lambda x, w, sizes, m, token: f(x[:tokens], w, sizes, token)
  gathered = lambda x, w, sizes, m, token: call(x[:tokens][token], w, sizes)
  kernels = [benchmark.jitted('gmm_listed_triton', by_list(triton.gmm))] * (benchmark.platform() == 'gpu')
  dense = benchmark.jitted('dense', lambda x, w, sizes, m, token: x @ m)
  return benchmark.Case(shape, flops, inputs, dense, [
      benchmark.jitted('gmm_listed', by_list(call)), *kernels, benchmark.jitted('gmm_gathered', gathered)])


if __name__ == '__main__':
  benchmark.main('pallas_kernels.gmm.bench', cases)
