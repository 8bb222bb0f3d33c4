"""JAX's own grouped matmul for TPUs, `jax.experimental.pallas.ops.tpu.megablox`, with its default tiles."""

from stmoe.bench import by_product


def missing():
  return by_product.nothing_but('tpu', 'megablox')


def variant(problem, floor):
  from jax.experimental.pallas.ops.tpu import megablox
  return by_product.variant(problem, floor, lambda x, w, sizes: megablox.gmm(x, w, sizes, x.dtype))
