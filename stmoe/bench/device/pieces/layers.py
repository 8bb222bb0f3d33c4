"""Sparse layers of published shapes, forward and backward, beside the dense floor of as many FLOPs.

The executor of the kernels without drops and with capacity 1.25, `gather`, and PyTorch's grouped products
where installed. All take turns in one process, see `stmoe/bench/layers.py`.
"""

import functools
import time

import jax

from stmoe.bench import layers as bench
from stmoe.bench import shapes
from stmoe.bench.device import pending
from stmoe.bench.device import markdown

WORTH = 3
ORDER = ('S3', 'S5', 'S4', 'S7', 'S8b', 'S8a', 'S1', 'S6', 'S2')     # the most valuable first
EXECUTORS = ('pallas', 'gather')
PEERS = ('torch_grouped_mm',)
ROUTING = 'real'
ROUNDS = 9
TINY = shapes.Shape('S3', 64, 16, 32, 4, 2, True, 'float32')
COLUMNS = ('shape', 'executor', 'capacity', 'drops', 'forward', 'forward + backward', 'TFLOP/s',
           'dense TFLOP/s', 'temporaries MB')


def jobs(dry):
  """Returns a Job for each shape."""
  chosen = [TINY] if dry else [shapes.SHAPES[name] for name in ORDER]
  return [pending.Job(f'layers {shape.name}', 12, functools.partial(begin, shape, 1 if dry else ROUNDS))
          for shape in chosen]


def begin(shape, rounds, submit):
  """The Job's `begin`: a future for each direction of the floor and of each executor."""
  programs = lambda f, inputs: {name: submit(functools.partial(_compiled, g, inputs))
                                for name, g in bench.directions(f).items()}
  f, make = bench.dense(shape)
  floor = programs(f, jax.eval_shape(make))
  abstract, layers = jax.eval_shape(functools.partial(bench.arrays, shape)), []
  for executor, factor in bench.kinds(EXECUTORS):
    f, router, parameters = bench.sparse(shape, executor, ROUTING, factor)
    layers.append(((executor, ROUTING, factor, router), parameters,
                   programs(f, (abstract[0], parameters, abstract[1]))))
  futures = [future for group in (floor, *(group for *_, group in layers)) for future in group.values()]
  return futures, lambda: rows(shape, rounds, (make, floor), layers)


def _compiled(f, inputs):
  """(program, seconds that it took to compile)."""
  began = time.perf_counter()
  return jax.jit(f).lower(*inputs).compile(), time.perf_counter() - began


def rows(shape, rounds, floor, layers):
  """Returns the rows of the Shape; one with an `error` for what did not compile or does not run.

  Args:
    floor:  (function that makes its inputs, dict direction -> future).
    layers: list of (facts, parameters of the router, dict direction -> future).
  """
  make, programs = floor
  base, (x, bank), variants, lost = _ready(programs, make(), {}), bench.arrays(shape), [], []
  for what, parameters, programs in layers:
    executor, routing, factor, router = what
    try:
      facts = bench.facts_of(executor, routing, factor, router, x, parameters)
      variants.append(_checked(_ready(programs, (x, parameters, bank), facts, base)))
    except Exception as error:  # noqa: BLE001 compilers have many kinds; the others are timed all the same
      lost.append(_lost(shape, executor, factor, error))
  for peer in PEERS:
    try:
      if bench.missing(peer):
        raise ValueError(bench.missing(peer))
      variants.append(_checked(bench.of_peer(shape, peer, ROUTING, x, bank, base)))
    except Exception as error:  # noqa: BLE001 so have libraries
      lost.append(_lost(shape, peer, None, error))
  return [*(bench.timed(shape, variants, rounds, lambda text: None) if variants else []), *lost]


def _ready(programs, inputs, facts, floor=None):
  made = {name: future.result() for name, future in programs.items()}
  facts = dict(facts, compile_s=sum(seconds for _, seconds in made.values()))
  return bench.ready({name: compiled for name, (compiled, _) in made.items()}, inputs, facts, floor)


def _checked(variant):
  """`variant`, which runs both ways: what takes too much memory fails before it is timed beside others."""
  for run in (*variant.run.values(), *variant.floor.run.values()):
    run()
  return variant


def _lost(shape, executor, factor, error):
  return dict(shape=shape.name, executor=executor, capacity_factor=factor,
              error=' '.join(f'{type(error).__name__}: {error}'.split())[:300])


def table(records):
  """Returns a table with a row per shape and executor: medians of paired ratios."""
  def cells(row):
    head = row['shape'], row['executor'], row['capacity_factor'] or 'dropless'
    if 'error' in row:
      return *head, '', row['error'][:60].replace('|', ' '), *[''] * 4
    train = row['train']
    temporary = f'{train["temp_mb"]:.0f}' if 'temp_mb' in train else ''
    return (*head, f'{row["drop_rate"]:.1%}', f'{row["forward"]["ratio"]:.2f}', f'{train["ratio"]:.2f}',
            f'{train["gflops"] / 1e3:.0f}', f'{train["dense_gflops"] / 1e3:.0f}', temporary)
  return markdown.of(COLUMNS, [cells(row) for record in records.values() for row in record['rows']])
