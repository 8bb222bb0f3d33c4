"""What `bench.py` of every operation shares: variants timed in turn against a floor, a table of the results.

Each round runs all variants once, one after the other, so that what slows the machine slows them alike; the
ratio to the floor is the median over rounds of the ratios within a round. The time of starting a program is
in each of them.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

import jax

# T, D, F, E, k: Mixtral 8x7B, DeepSeekMoE 16B, OLMoE 1B-7B; and what a CPU does in a moment.
MODELS = dict(mixtral=(4096, 4096, 14336, 8, 2), deepseek_moe=(16384, 2048, 1408, 64, 6),
              olmoe=(16384, 2048, 1024, 64, 8))
SMALL = dict(small=(2048, 256, 1024, 8, 1))


def platform():
  """Returns 'cpu', 'tpu' or 'gpu': where this process runs. Benchmarks may ask; kernels never do."""
  here = jax.default_backend()
  return here if here in ('tpu', 'gpu') else 'cpu'


def models():
  """Returns dict name -> (T, D, F, E, k) of the shapes to time here."""
  return SMALL if platform() == 'cpu' else MODELS


def dtype():
  """Returns the dtype to time here."""
  return jax.numpy.float32 if platform() == 'cpu' else jax.numpy.bfloat16


def normal(seed, *shape):
  """Returns normal numbers of `shape` in the dtype to time here."""
  return jax.random.normal(jax.random.key(seed), shape, dtype())


def sizes(tokens, experts, k):
  """Returns i32[E]: rows of each expert from a random router on random tokens, so that some have more."""
  logits = jax.random.normal(jax.random.key(0), (tokens, experts))
  logits += jax.random.normal(jax.random.key(1), (experts,)) / 2
  return jax.numpy.bincount(jax.lax.top_k(logits, k)[1].reshape(-1), length=experts).astype('int32')


def token(tokens, k):
  """Returns i32[M]: the token of every row, each k times, in no order."""
  return jax.random.permutation(jax.random.key(2), jax.numpy.arange(tokens * k, dtype='int32') % tokens)


def listed(name, op):
  """Returns dict name -> `op` of (x [T,.], other, sizes, token), its rows by the list and gathered before."""
  here = functools.partial(op, target=platform())
  return {f'{name}_listed': jax.jit(here),
          f'{name}_gathered': jax.jit(lambda x, other, sizes, token: here(x[token], other, sizes))}


def tiles(modules, shape, tune):
  """Returns the tiles to time: twelve candidates of modules[platform] to `tune`, else None: its choice."""
  if not tune or platform() not in modules:
    return [None]
  return modules[platform()].candidates(*shape, jax.numpy.dtype(dtype()).itemsize)[:12]


def row(op, shape, tiles, flops, run, floor, rounds):
  """Returns the dict of one result: functions without arguments `run` and `floor` timed in turn."""
  times = [(_seconds(run), _seconds(floor)) for _ in range(rounds + 2)][2:]
  seconds = statistics.median(a for a, _ in times)
  return dict(op=op, shape=list(shape), dtype=str(jax.numpy.dtype(dtype())), tiles=tiles, seconds=seconds,
              floor_seconds=statistics.median(b for _, b in times),
              ratio=statistics.median(a / b for a, b in times), tflops=flops / seconds / 1e12)


def _seconds(run):
  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def main(module, rows, argv=None):
  """Prints and saves the results of a benchmark.

  Args:
    module: its name, 'pallas_kernels.gmm.bench'.
    rows: function of (tune, rounds) that yields results of `row`.
    argv: arguments of the command line.
  """
  argv = sys.argv[1:] if argv is None else argv
  parser = argparse.ArgumentParser(f'python -m {module}')
  parser.add_argument('--json', type=pathlib.Path, help='table to write; results of other operations stay')
  parser.add_argument('--tune', action='store_true', help='time several tiles for each shape (TPUs, GPUs)')
  parser.add_argument('--rounds', type=int, default=20)
  args = parser.parse_args(argv)
  found = []
  for result in rows(args.tune, args.rounds):
    print(f'{result["op"]:16}{str(result["shape"]):32}{result["seconds"] * 1e3:9.3f} ms'
          f'{result["ratio"]:8.2f} x floor{result["tflops"]:9.2f} TFLOP/s  {result["tiles"] or ""}')
    found.append(result)
  if args.json:
    _save(args.json, found, ' '.join(['python -m', module, *argv]))


def _save(path, found, command):
  old = json.loads(path.read_text(encoding='utf-8')) if path.exists() else dict(commands=[], rows=[])
  ops = {result['op'] for result in found}
  rows = [result for result in old['rows'] if result['op'] not in ops] + found
  commands = [c for c in old['commands'] if c.split()[2] != command.split()[2]] + [command]
  table = dict(device=jax.devices()[0].device_kind, jax=jax.__version__, commands=commands, rows=rows)
  path.write_text(json.dumps(table, indent=1) + '\n', encoding='utf-8')
