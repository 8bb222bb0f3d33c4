"""How much of a training step is matrix products, from a profile of the compiled step."""

import contextlib
import pathlib
import tempfile
import time

import jax
import numpy as np

from stmoe.analysis import flops
from stmoe.aot import hlo
from stmoe.bench import held
from stmoe.bench import layers as bench
from stmoe.bench import scopes
from stmoe.bench import timeline


def measure(cfg, rounds=5):
  """Returns dict(step_ms, share, gflops, matmul_gflops) of the training step of `cfg` on this machine.

  share: time of the instructions that hold a matrix product over the time of all instructions.
  gflops: active FLOPs (a sparse layer computes padding and recomputes besides) per second.
  matmul_gflops: of a square product in the same process.
  """
  step = held.Step(cfg)
  with tempfile.TemporaryDirectory() as folder, step.mesh():
    machine, seconds, rates = bench.probe(), [], []
    for number in range(rounds + 2):
      # The first step warms up; the last alone is profiled, because that costs time.
      with jax.profiler.trace(folder) if number > rounds else contextlib.nullcontext():
        start = time.perf_counter()
        step.run()
        seconds.append(time.perf_counter() - start)
      rates.append(machine())
    share = of_products(pathlib.Path(folder), step.compiled.as_text())
  taken = float(np.median(seconds[1:-1]))
  tokens = flops.lengths(cfg)['decoder'] * cfg.train.batch_size
  active = flops.active_per_token(cfg)['train'] * tokens
  return dict(step_ms=1e3 * taken, share=share, gflops=active / taken / 1e9,
              matmul_gflops=max(rates))


def of_products(folder, text):
  """Returns the share of the profiled time in `folder` that products took.

  Args:
    folder: written by `jax.profiler.trace`.
    text:   optimised HLO of the program that ran.
  """
  module = hlo.parse(text)
  products, parts = scopes.products(module), scopes.of(module, set())
  taken = timeline.shared([e for e in timeline.read(folder, hlo.title(text)) if e[2] in parts])
  return sum(ns for name, ns in taken.items() if name in products) / sum(taken.values())
