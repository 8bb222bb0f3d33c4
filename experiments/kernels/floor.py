"""What the products of a training step of a whole model take alone, each by itself: the floor of that step.

  python -m stmoe.experiments.kernels.floor --sizes small

The sizes are those of `experiments.kernels.whole`. Experts have equal rows. `again` is what the executor
`blocks` computes a second time, backward. Attention has no products above the diagonal, but in the four
blocks on it. A time is the least of the rounds.
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp

from stmoe.experiments.kernels.whole import sizes

SEEN = 0.625                             # of the products of causal attention, in four blocks of queries


def least(f, *arrays, rounds: int = 9, times: int = 4) -> float:
  """Returns the ms of f(*arrays), compiled: the least of the rounds, each the mean of `times` calls."""
  f, taken = jax.jit(f).lower(*arrays).compile(), math.inf
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(times):
      y = f(*arrays)
    jax.block_until_ready(y)
    taken = min(taken, (time.perf_counter() - start) / times)
  return 1e3 * taken


def product(rows: int, wide: int, out: int) -> tuple[float, float]:
  """Returns ms of (x w; both gradients) for x [rows,wide], w [wide,out]."""
  x, w, g = jnp.ones((rows, wide)), jnp.ones((wide, out)), jnp.ones((rows, out))
  return (least(jnp.matmul, x, w),
          least(lambda g, w: jnp.einsum('no,wo->nw', g, w), g, w)
          + least(lambda x, g: jnp.einsum('nw,no->wo', x, g), x, g))


def parts(size: dict) -> dict[str, float]:
  """Returns dict part -> ms of a training step of a size of `sizes.SIZES`."""
  rows, width, layers, experts = size['B'] * size['T'], size['D'], size['L'], size['E']
  of_expert = rows * size['k'] // experts
  up, down = product(of_expert, width, size['F']), product(of_expert, size['F'], width)
  heads = jnp.ones((size['B'] * size['H'], size['T'], width // size['H']))
  scores = least(lambda q, k: jnp.einsum('htp,hkp->htk', q, k), heads, heads)
  return dict(projections=4 * layers * sum(product(rows, width, width)),
              scores=6 * layers * SEEN * scores,
              experts=layers * experts * (2 * sum(up) + sum(down)),
              again=2 * layers * experts * up[0] if experts > 1 else 0.0,
              head=sum(product(rows, width, size['V'])))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--sizes', default='small,fine,wide,dense', help='of experiments.kernels.whole')
  for name in parser.parse_args().sizes.split(','):
    taken = parts(sizes.SIZES[name])
    print(f'{name}: {sum(taken.values()):.0f} ms:', *(f'{part} {ms:.1f}' for part, ms in taken.items()))


if __name__ == '__main__':
  main()
