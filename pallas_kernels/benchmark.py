"""What `bench.py` of every operation shares: variants timed in turn with a floor, a table of the results.

Programs are compiled by several threads before the first is timed. Each round runs the floor and a variant
in turn, so that what slows the machine slows both alike. The ratio to the floor is the
median over rounds of the ratios within a round. On accelerators a round queues several calls and waits for
the last: the time of starting a program is hidden, as it is in a training step.
"""

import argparse
import concurrent.futures
import functools
import json
import pathlib
import statistics
import sys
import time
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

# T, D, F, E, k: Mixtral 8x7B, DeepSeekMoE 16B, OLMoE 1B-7B, DeepSeek-V3 and a fine-grained one; and what a
# CPU does in a moment.
MODELS = dict(mixtral=(4096, 4096, 14336, 8, 2), deepseek_moe=(16384, 2048, 1408, 64, 6),
              olmoe=(16384, 2048, 1024, 64, 8), deepseek_v3=(16384, 7168, 2048, 256, 8),
              fine_grained=(32768, 4096, 1024, 128, 8))
SMALL = dict(small=(2048, 256, 1024, 8, 1))
TILES = 16                              # how many tiles are timed to tune an operation on a shape
WRONG = 0.03                            # of the largest entry: so much may results in bfloat16 differ


class Variant(NamedTuple):
  """A way to compute an operation.

  op:    its name in tables.
  tiles: named tuple of the sides of its tiles, or None: its own choice.
  make:  function of the abstract inputs that returns a program, a function of the inputs.
  wait:  function of a program's result that returns when the result is there.
  """
  op: str
  tiles: tuple | None
  make: Callable
  wait: Callable = jax.block_until_ready


class Case(NamedTuple):
  """An operation on inputs of one shape: `inputs()` makes them, `floor` and each of `variants` use them."""
  shape: tuple
  flops: int
  inputs: Callable
  floor: Variant
  variants: list


def jitted(op, f, tiles=None):
  """Returns the Variant that compiles f."""
  return Variant(op, tiles, lambda inputs: jax.jit(f).lower(*inputs).compile())


def platform():
  """Returns 'cpu', 'tpu' or 'gpu': where this process runs. Benchmarks may ask; kernels never do."""
  backend = jax.default_backend()
  return backend if backend in ('tpu', 'gpu') else 'cpu'


def models(names=None):
  """Returns the (T, D, F, E, k) to time here: the named shapes, None for all."""
  shapes = SMALL if platform() == 'cpu' else MODELS
  return [shapes[name] for name in names or shapes]


def dtype():
  """Returns the dtype to time here."""
  return jnp.float32 if platform() == 'cpu' else jnp.bfloat16


def normal(seed, *shape):
  """Returns normal numbers of `shape` in the dtype to time here."""
  return jax.random.normal(jax.random.key(seed), shape, dtype())


def sizes(tokens, experts, k):
  """Returns i32[E]: rows of each expert from a random router on random tokens, so that some have more."""
  logits = jax.random.normal(jax.random.key(0), (tokens, experts))
  logits += jax.random.normal(jax.random.key(1), (experts,)) / 2
  return jnp.bincount(jax.lax.top_k(logits, k)[1].reshape(-1), length=experts).astype('int32')


def token(tokens, k):
  """Returns i32[M]: the token of every row, each k times, in no order."""
  return jax.random.permutation(jax.random.key(2), jnp.arange(tokens * k, dtype='int32') % tokens)


def kernels(modules, op, shape, tune):
  """Returns list of (name in tables, module, tiles): the kernels of this platform, by their names.

  Args:
    modules: dict platform -> dict of the ending of a kernel's name -> its module.
    op: name of the operation.
    shape: (M, K, N, E).
    tune: whether with each of several tiles; else with None, the kernel's own choice.
  """
  itemsize = jnp.dtype(dtype()).itemsize
  return [(op + ending, module, tiles) for ending, module in modules.get(platform(), {}).items()
          for tiles in (module.candidates(*shape, itemsize)[:TILES] if tune else [None])]


def measure(cases, rounds, note=print):
  """Yields a dict for every Variant of the Cases; `note` gets a line for each Variant that is left out.

  Left out is what does not compile or run, and tiles whose result is not that of the first tiles.
  """
  with concurrent.futures.ThreadPoolExecutor() as pool:
    compiling = [programs(case, pool.submit) for case in cases]
    concurrent.futures.wait([program for futures in compiling for program in futures])
    for case, futures in zip(cases, compiling):
      yield from timed(case, futures, rounds, note)


def programs(case, submit):
  """Returns the list of Futures of a Case's programs, the floor's first; `submit(f, *args)` makes one."""
  inputs = jax.eval_shape(case.inputs)
  return [submit(v.make, inputs) for v in (case.floor, *case.variants)]


def timed(case, futures, rounds, note=print):
  """Yields what `measure` does for a Case, whose `programs` are compiled."""
  (floor, *compiled), inputs, first_result = futures, case.inputs(), None
  for variant, program in zip(case.variants, compiled):
    try:
      program = program.result()
      result = program(*inputs)
      variant.wait(result)
      first_result = result if first_result is None else first_result
      if variant.tiles and not _difference(first_result, result) <= WRONG:                  # NaN is not
        raise ValueError('its result is not that of the first tiles')
      del result
      row = _row(case, variant, inputs, program, floor.result(), rounds)
    except Exception as error:  # noqa: BLE001 compilers and libraries have many kinds
      note(f'{variant.op} {case.shape} {tuple(variant.tiles or ())}: left out, {str(error)[:300]!r}')
      continue
    yield row


@jax.jit
def _difference(want, got):
  off = jnp.abs(got.astype(jnp.float32) - want.astype(jnp.float32)).max()
  return off / jnp.abs(want.astype(jnp.float32)).max()


def _row(case, variant, inputs, program, floor, rounds):
  """The dict of a result: `program` and `floor` timed in turn."""
  run, base = functools.partial(program, *inputs), functools.partial(floor, *inputs)
  times = [(_seconds(run, variant.wait), _seconds(base, case.floor.wait)) for _ in range(rounds + 2)][2:]
  seconds = statistics.median(a for a, _ in times)
  return dict(op=variant.op, shape=list(case.shape), dtype=str(jnp.dtype(dtype())),
              tiles=variant.tiles and variant.tiles._asdict(), seconds=seconds,
              floor_seconds=statistics.median(b for _, b in times),
              ratio=statistics.median(a / b for a, b in times), tflops=case.flops / seconds / 1e12)


def _seconds(run, wait):
  calls = 1 if platform() == 'cpu' else 5
  start = time.perf_counter()
  for _ in range(calls):
    out = run()
  wait(out)
  return (time.perf_counter() - start) / calls


def main(module, cases, argv=None):
  """Prints and saves the results of a benchmark.

  Args:
    module: its name, 'pallas_kernels.gmm.bench'.
    cases: function of (models, tune) that returns Cases; models are (T, D, F, E, k).
    argv: arguments of the command line.
  """
  if argv is None:
    argv, sys.argv[1:] = sys.argv[1:], []                            # tokamax would read it as its own
  parser = argparse.ArgumentParser(f'python -m {module}')
  parser.add_argument('--json', type=pathlib.Path,
                      help='table to write; results of other operations and shapes stay')
  parser.add_argument('--tune', action='store_true', help='time several tiles for each shape (TPUs, GPUs)')
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--models', nargs='*', choices=[*(SMALL if platform() == 'cpu' else MODELS)],
                      help='whose shapes to time; all unless named')
  args = parser.parse_args(argv)
  results = []
  for result in measure(list(cases(models(args.models), args.tune)), args.rounds):
    tiles = result['tiles'] and ' '.join(f'{k}={v}' for k, v in result['tiles'].items())
    print(f'{result["op"]:16}{str(result["shape"]):32}{result["seconds"] * 1e3:9.3f} ms'
          f'{result["ratio"]:8.2f} x floor{result["tflops"]:9.2f} TFLOP/s  {tiles or ""}', flush=True)
    results.append(result)
    if args.json:                                                    # each time: it may be stopped
      _save(args.json, results, ' '.join(['python -m', module, *argv]))


def _save(path, found, command):
  saved = json.loads(path.read_text(encoding='utf-8')) if path.exists() else dict(commands=[], rows=[])
  key = lambda row: (row['op'], row.get('shape'))
  others = [row for row in saved['rows'] if key(row) not in list(map(key, found))]
  # Of other shapes, by an older command.
  ops = {row['op'] for row in others} & {row['op'] for row in found}
  commands = [c for c in saved['commands'] if ops or c.split()[2] != command.split()[2]]
  commands, rows = [*(c for c in commands if c != command), command], others + found
  head = json.dumps({key: value for key, value in saved.items() if key != 'rows'} | dict(
      device=jax.devices()[0].device_kind, jax=jax.__version__, commands=commands))
  text = ',\n'.join(map(json.dumps, rows))
  path.write_text(f'{head[:-1]}, "rows": [\n{text}\n]}}\n', encoding='utf-8')
