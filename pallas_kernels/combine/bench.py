"""Times `combine` against the gathers of XLA on the device of this process, which may be the same on CPUs.

  python -m pallas_kernels.combine.bench --json OUT
"""

import functools

import jax

from pallas_kernels import benchmark
from pallas_kernels.combine import api
from pallas_kernels.combine import portable


def rows(tune, rounds):
  """Yields a result for every shape; there is nothing to tune."""
  for tokens, width, _, _, k in benchmark.models().values():
    at = jax.random.permutation(jax.random.key(2), tokens * k).reshape(tokens, k).astype('int32')
    args = benchmark.normal(0, tokens * k, width), at, jax.random.uniform(jax.random.key(1), (tokens, k))
    run = functools.partial(jax.jit(functools.partial(api.combine, target=benchmark.platform())), *args)
    floor = functools.partial(jax.jit(portable.combine), *args)
    yield benchmark.row('combine', (tokens, k, width), None, 2 * tokens * k * width, run, floor, rounds)


if __name__ == '__main__':
  benchmark.main('pallas_kernels.combine.bench', rows)
