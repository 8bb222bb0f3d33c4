"""What the forward of a dropless layer is made of on a CPU: parts timed alone, or left out of the loop.

  python -m stmoe.experiments.kernels.parts --shape C2
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp

from pallas_kernels import walk
from stmoe.bench import layers as bench
from stmoe.bench import shapes
from stmoe.bench.peers import split
from stmoe.core import assignment
from stmoe.core.execute import blocks
from stmoe.core.transport import grouped
from stmoe.core.transport import rows as rows_lib


def loop(tokens, bank, rows, few_results=False):
  """Returns the rows [M+P,D] of `blocks.forward`, or an array in their place, made without one part.

  Args:
    tokens: [T,D]; bank, rows: as `blocks.forward` has them.
    few_results: whether a block writes only as many rows as the smallest block has, without padding.
  """
  cut = blocks._cut(rows, bank)
  table = walk.room(cut, rows.token)
  run = lambda bank, x: grouped.forward(bank, x, grouped.One(), None)[0]

  def block(i, size):
    y = run(blocks._one(bank, bank, cut.expert[i]), blocks._take(tokens, walk.take(table, cut.row[i], size)))
    return jax.lax.optimization_barrier(y)[:cut.sizes[0]] if few_results else walk.whole(cut, y)

  put = lambda out, i, y: walk.put(out, y, cut.row[i])
  return walk.each(cut, block, put, jnp.zeros((table.size, tokens.shape[1]), tokens.dtype))


def total(out, rows, weight, a):
  """Returns [G,S,D], the weighted sum of every token's rows."""
  return rows_lib.add_up(blocks._per_edge(out, rows) * weight[..., None], a)


def runs(shape):
  """Returns (dict name -> function of nothing, rows computed over rows needed) for a `shapes.Shape`."""
  x, bank = bench.arrays(shape)
  router, parameters = bench._routed(shape, 'real', None)
  a = jax.jit(router)(x, parameters)
  sort = lambda a: blocks.sort(a, bank)
  rows, weight = jax.jit(sort)(a), jnp.where(assignment.live(a), a.weight, 0)
  dense, make = bench.dense(shape)
  floor = bench.compiled(dense, make(), {})
  uniform = split.variant(bench._problem(shape, 'uniform', x, bank), floor)

  def compiled(f, *arguments):
    program = jax.jit(f).lower(*arguments).compile()
    return lambda: jax.block_until_ready(program(*arguments))
  experts = x[0], bank, rows
  cut = blocks._cut(rows, bank)
  up = sum(min(size for size in cut.sizes if size >= n) for n in cut.count[:cut.number].tolist())
  return {
      'floor': floor.run['forward'], 'split': uniform.run['forward'],
      'layer': compiled(lambda x, p, bank: blocks.execute(x, router(x, p), bank), x, parameters, bank),
      'router': compiled(router, x, parameters), 'table': compiled(sort, a),
      'experts': compiled(loop, *experts),
      'experts, few results': compiled(functools.partial(loop, few_results=True), *experts),
      'sum': compiled(total, jax.jit(loop)(*experts), rows, weight, a)}, up / int(rows.sizes.sum())


def table(ms, padding):
  """Returns dict part -> milliseconds, from `ms`, the milliseconds of the functions of `runs`."""
  results = ms['experts'] - ms['experts, few results']
  padded = ms['split'] * (padding - 1)
  return {
      'products, all at a time': ms['split'], 'rows padded': padded,
      'one by one, matrices copied': ms['experts'] - ms['split'] - padded - results,
      'results padded and placed': results, 'router': ms['router'], 'table of rows': ms['table'],
      'weighted sum': ms['sum'], 'layer': ms['layer'], 'dense floor': ms['floor']}


def main():
  """Prints the table."""
  parser = argparse.ArgumentParser('python -m stmoe.experiments.kernels.parts')
  parser.add_argument('--shape', choices=['C1', 'C2', 'C3', 'C4'], default='C2')
  parser.add_argument('--rounds', type=int, default=19)
  args = parser.parse_args()
  variants, padding = runs(shapes.SHAPES[args.shape])
  times = {name: [] for name in variants}
  for _ in range(args.rounds + 1):         # in turn; the first round warms up
    for name, run in variants.items():
      began = time.perf_counter()
      run()
      times[name].append(1e3 * (time.perf_counter() - began))
  medians = {name: statistics.median(t[1:]) for name, t in times.items()}
  for part, value in table(medians, padding).items():
    print(f'{part:28}{value:7.2f} ms{value / medians["floor"]:8.3f} of the floor')


if __name__ == '__main__':
  main()
