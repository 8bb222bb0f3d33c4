"""Times `combine` against the gathers of XLA on the device of this process; on CPUs they may be the same.

  python -m pallas_kernels.combine.bench --json OUT
"""

import functools

import jax

from pallas_kernels import benchmark
from pallas_kernels.combine import api
from pallas_kernels.combine import portable


def cases(models, tune):
  """Yields a Case for every shape; there is nothing to tune."""
  for tokens, width, _, _, k in models:
    run = functools.partial(api.combine, target=benchmark.platform())
    yield benchmark.Case(
        (tokens, k, width), 2 * tokens * k * width, functools.partial(_inputs, tokens, width, k),
        benchmark.jitted('gathers', portable.combine), [benchmark.jitted('combine', run)])


def _inputs(tokens, width, k):
  at = jax.random.permutation(jax.random.key(2), tokens * k).reshape(tokens, k).astype('int32')
  return benchmark.normal(0, tokens * k, width), at, jax.random.uniform(jax.random.key(1), (tokens, k))


if __name__ == '__main__':
  benchmark.main('pallas_kernels.combine.bench', cases)
