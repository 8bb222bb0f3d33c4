"""Times `tgmm` against a dense matmul of the same FLOPs on the device of this process.

'tgmm_listed' has the rows of tokens by a list, and 'tgmm_gathered' has them gathered by XLA before. Where
'tgmm_gathered' is faster, a kernel should not load rows by a list. On GPUs 'tgmm' is whichever of
'tgmm_triton' and 'tgmm_mosaic' users get; 'tgmm tokamax' and 'tgmm torch' are other libraries, where
installed.

  python -m pallas_kernels.tgmm.bench --tune --json pallas_kernels/tuning/tpu_v5_lite.json
"""

import functools

from pallas_kernels import benchmark
from pallas_kernels import peers
from pallas_kernels.tgmm import api
from pallas_kernels.tgmm import mosaic
from pallas_kernels.tgmm import tpu
from pallas_kernels.tgmm import triton

KERNELS = dict(tpu={'': tpu}, gpu={'_triton': triton, '_mosaic': mosaic})


def cases(models, tune):
  """Yields a Case for every shape."""
  for tokens, width, hidden, experts, k in models:
    for inner, outer in ((width, hidden), (hidden, width)):
      shape = tokens * k, inner, outer, experts
      flops = 2 * tokens * k * inner * outer
      inputs = functools.partial(_inputs, tokens, k, inner, outer, experts)
      if inner == width and not tune:
        yield _listed(shape, flops, tokens, k)
      variants = [_variant(name, module.tgmm, tiles=tiles)
                  for name, module, tiles in benchmark.kernels(KERNELS, 'tgmm', shape, tune)]
      if not tune:
        user = _variant('tgmm', api.tgmm, target=benchmark.platform())
        variants = [user, *(v for v in variants if v.op != 'tgmm'), *peers.variants('tgmm')]
      yield benchmark.Case(shape, flops, inputs, benchmark.jitted('dense', _dense), variants)


def _inputs(tokens, k, inner, outer, experts):
  """(x [M,K], dy [M,N], sizes)."""
  return (benchmark.normal(0, tokens * k, inner), benchmark.normal(1, tokens * k, outer),
          benchmark.sizes(tokens, experts, k))


def _dense(x, dy, sizes, *_):
  return x.T @ dy


def _variant(op, call, tiles=None, **options):
  call = functools.partial(call, **options)
  return benchmark.jitted(op, call if tiles is None else functools.partial(call, tiles=tiles), tiles)


def _listed(shape, flops, tokens, k):
  """The Case of rows by a list of tokens."""
  _, inner, outer, experts = shape
  inputs = lambda: (*_inputs(tokens, k, inner, outer, experts), benchmark.token(tokens, k))
  call = functools.partial(api.tgmm, target=benchmark.platform())
  by_list = lambda f: lambda x, dy, sizes, token: f(x[:tokens], dy, sizes, token)
  gathered = lambda x, dy, sizes, token: call(x[:tokens][token], dy, sizes)
  kernels = [benchmark.jitted('tgmm_listed_triton', by_list(triton.tgmm))] * (benchmark.platform() == 'gpu')
  return benchmark.Case(shape, flops, inputs, benchmark.jitted('dense', _dense), [
      benchmark.jitted('tgmm_listed', by_list(call)), *kernels, benchmark.jitted('tgmm_gathered', gathered)])


if __name__ == '__main__':
  benchmark.main('pallas_kernels.tgmm.bench', cases)
