"""Times `route` against the operations of XLA on the device of this process, which are the same on CPUs.

  python -m pallas_kernels.route.bench --json OUT
"""

import functools

import jax

from pallas_kernels import benchmark
from pallas_kernels.route import api
from pallas_kernels.route import portable


def cases(models, tune):
  """Yields a Case for every shape; there is nothing to tune. FLOPs are the softmax's, 4 an entry."""
  for tokens, _, _, experts, k in models:
    inputs = functools.partial(lambda *shape: (jax.random.normal(jax.random.key(0), shape),), tokens, experts)
    run = functools.partial(api.route, k=k, target=benchmark.platform())
    floor = benchmark.jitted('operations', functools.partial(portable.route, k=k))
    yield benchmark.Case((tokens, experts, k), 4 * tokens * experts, inputs, floor,
                         [benchmark.jitted('route', run)])


if __name__ == '__main__':
  benchmark.main('pallas_kernels.route.bench', cases)
