"""Times `route` against the operations of XLA on the device of this process, which are the same on CPUs.

  python -m pallas_kernels.route.bench --json OUT
"""

import functools

import jax

from pallas_kernels import benchmark
from pallas_kernels.route import api
from pallas_kernels.route import portable


def rows(tune, rounds):
  """Yields a result for every shape; there is nothing to tune. FLOPs are those of the softmax, 4 an entry."""
  for tokens, _, _, experts, k in benchmark.models().values():
    logits = jax.random.normal(jax.random.key(0), (tokens, experts))
    run = functools.partial(jax.jit(functools.partial(api.route, k=k, target=benchmark.platform())), logits)
    floor = functools.partial(jax.jit(functools.partial(portable.route, k=k)), logits)
    yield benchmark.row('route', (tokens, experts, k), None, 4 * tokens * experts, run, floor, rounds)


if __name__ == '__main__':
  benchmark.main('pallas_kernels.route.bench', rows)
