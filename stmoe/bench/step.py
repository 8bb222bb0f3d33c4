"""How much of a training step is matrix products, from a profile of the compiled step."""

import contextlib
import pathlib
import re
import tempfile
import time

import jax
import numpy as np

from stmoe.analysis import flops
from stmoe.bench import layers as bench
from stmoe.data import batches as pipeline
from stmoe.train import check
from stmoe.train import state as states
from stmoe.train import step as steps

# Instructions that only run other instructions; the profile has both.
CONTAINERS = ('while', 'call', 'conditional')


def measure(cfg, rounds=5):
  """Returns dict(step_ms, share, gflops, matmul_gflops) of the training step of `cfg` on this machine.

  share: time of the instructions that hold a matrix product over the time of all instructions.
  gflops: active FLOPs (a sparse layer computes padding and recomputes besides) per second.
  matmul_gflops: of a square product in the same process.
  """
  with tempfile.TemporaryDirectory() as folder, states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    plan = states.blueprint(cfg, mesh)
    state, do_step = states.init(cfg, plan), steps.make(cfg, plan)
    batch = check.place(next(pipeline.train_iterator(cfg)), mesh)
    compiled = do_step.lower(state, batch).compile()
    machine, seconds, rates = bench.probe(), [], []
    for number in range(rounds + 2):
      # The first step warms up; the last alone is profiled, because that costs time.
      with jax.profiler.trace(folder) if number > rounds else contextlib.nullcontext():
        start = time.perf_counter()
        state, report = compiled(state, batch)
        jax.block_until_ready((state, report))
        seconds.append(time.perf_counter() - start)
      rates.append(machine())
    share = of_products(pathlib.Path(folder), compiled.as_text())
  step = float(np.median(seconds[1:-1]))
  tokens = flops.lengths(cfg)['decoder'] * cfg.train.batch_size
  active = flops.active_per_token(cfg)['train'] * tokens
  return dict(step_ms=1e3 * step, share=share, gflops=active / step / 1e9,
              matmul_gflops=max(rates))


def of_products(folder, text):
  """Returns the share of the profiled time in `folder` that products took.

  Args:
    folder: written by `jax.profiler.trace`.
    text:   optimised HLO of the program that ran.
  """
  products = with_products(text)
  profile = jax.profiler.ProfileData.from_file(str(next(folder.rglob('*.xplane.pb'))))
  inside = total = 0.0
  for event in (e for plane in profile.planes for line in plane.lines for e in line.events):
    name = dict(event.stats).get('hlo_op')
    if name and not name.startswith(CONTAINERS):
      total += event.duration_ns
      inside += event.duration_ns * (name in products)
  return inside / total


def with_products(text):
  """Returns the names of the HLO instructions that are a dot or a fusion around one."""
  computation, holds, calls = None, set(), {}
  for row in text.splitlines():
    if start := re.match(r'(?:ENTRY )?%?([\w.-]+) .*\{$', row):
      computation = start.group(1)
    elif found := re.match(r'\s+(?:ROOT )?%?([\w.-]+) = .*?\s([a-z][\w-]*)\(', row):
      name, kind = found.groups()
      if kind in ('dot', 'convolution'):
        holds |= {name, computation}
      elif kind == 'fusion':
        calls[name] = re.search(r'calls=%?([\w.-]+)', row).group(1)
  return (holds | {name for name, called in calls.items() if called in holds}) - set(calls.values())
