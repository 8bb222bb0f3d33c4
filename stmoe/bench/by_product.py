"""A sparse layer around another library's grouped matmul; the rest is ours, and JAX differentiates it."""

import jax

from stmoe.bench import layers as bench
from stmoe.core import assignment
from stmoe.core.transport import rows as rows_lib


def variant(problem, floor, product):
  """Returns a `bench.Variant` of `problem` with products `product(x [M,K], w [E,K,N], sizes i32[E])`."""
  sizes = problem.wi.shape[0], problem.x.shape[0]
  weights = [w for w in (problem.wi, problem.wg, problem.wo) if w is not None]

  def layer(x, weight, *weights):
    edges = assignment.from_choices(problem.expert[None], weight[None], sizes[0])
    a = assignment.cap(edges, sizes[1])
    rows = rows_lib.sort(a)
    xs = rows_lib.take(x[None], a, rows)                             # [M, D]
    h = product(xs, weights[0], rows.sizes)                          # [M, F]
    h = jax.nn.relu(h) if len(weights) == 2 else jax.nn.silu(h) * product(xs, weights[1], rows.sizes)
    y = rows_lib.give(product(h, weights[-1], rows.sizes), a, rows)  # [1, N, D]
    return rows_lib.add_up(y * a.weight[..., None], a)[0].astype(x.dtype)
  return bench.compiled(layer, (problem.x, problem.weight, *weights), {}, floor)


def nothing_but(platform, package):
  """Returns why `package` cannot run on the present device, '' if it can: the device must be a `platform`."""
  backend = jax.default_backend()
  return '' if backend == platform else f'{package} runs on {platform}, this is {backend}'
