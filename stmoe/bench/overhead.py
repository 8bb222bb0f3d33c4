"""What the training loop costs beside its jitted step, by paired timings in one process."""

import contextlib
import pathlib
import tempfile
import time

import jax
import numpy as np

from stmoe.train import check
from stmoe.train import loop
from stmoe.train import state as states


def measure(cfg, rounds=9, steps=10, devices=None):
  """Returns dict(step_ms, loop_ms, host_ms, ratio, ratios): the loop over the bare step, medians over rounds.

  host_ms is the processor time that this thread spends per step beyond the bare call. On a machine
  that others use too, host_ms still means something where the ratio does not.

  A round times `steps` steps of the loop (next batch, placing it, step, metrics, log). Then it times the same
  number of calls of the jitted step on one batch that is already placed.
  Evaluation and checkpoints, whose times are stated by themselves, are kept out of it.

  Args:
    cfg: of an experiment; its step should take about as long as the steps of interest (100 ms).
  """
  cfg = cfg.copy_and_resolve_references().unlock()
  last = max(cfg.train.steps, 2 + (rounds + 1) * steps)              # never reached
  cfg.train.update(steps=last, log_every=steps, stats_every=last)
  cfg.eval.every = cfg.checkpoint.every = last
  loop.keep_compilations()
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    mesh = stack.enter_context(states.on_mesh(cfg.mesh, devices))
    run = loop.Loop(cfg, pathlib.Path(folder), 'overhead', mesh, 1.0, stack)
    run.advance()                        # compiles
    batch = check.place(next(run.data), mesh)

    def bare():
      for _ in range(steps):
        run.state, _ = run.do_step.step(run.state, batch)

    def whole():
      for _ in range(steps):
        run.advance()

    rows = [[_seconds(work, run) for work in (bare, whole)] for _ in range(rounds + 1)][1:]
  times, host = np.moveaxis(np.array(rows), -1, 0)                   # [rounds, 2] each
  ratios = times[:, 1] / times[:, 0]
  step_ms, loop_ms = (1e3 * np.median(times, axis=0) / steps).tolist()
  host_ms = float(1e3 * np.median(host[:, 1] - host[:, 0]) / steps)
  return dict(step_ms=step_ms, loop_ms=loop_ms, host_ms=host_ms, ratio=float(np.median(ratios)),
              ratios=ratios.tolist())


def _seconds(work, run):
  """(wall-clock seconds, processor seconds of this thread) of `work`."""
  jax.block_until_ready(run.state)
  start, host = time.perf_counter(), time.thread_time()
  work()
  jax.block_until_ready(run.state)
  return time.perf_counter() - start, time.thread_time() - host
