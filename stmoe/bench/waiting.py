"""How long a user waits: from the command to the first step, and for the compiler."""

import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import jax

from stmoe import errors
from stmoe.aot import step as aot
from stmoe.runs import directory as rundir
from stmoe.train import state as states

FIRST = re.compile(r'first step took ([\d.]+) s')
PATIENCE = 3600.0                        # seconds


def first_step(name: str, overrides: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
  """Returns dict(cold, warm), each dict(s, cpu_s, step_s), of `stmoe train NAME` until its first step.

  s is from the start of the process, step_s of the first step alone, which compiles. Cold has no compiled
  program at hand, warm has those of cold. Data that are prepared once are prepared before.

  Args:
    overrides: texts '--config.a.b=value'.
  Raises:
    UserError: of the name or overrides, or because the command ended without a step.
  """
  rundir.named(name, overrides)                                      # a mistake is told before anything runs
  with tempfile.TemporaryDirectory() as folder:
    _until_first_step(name, overrides, pathlib.Path(folder), 'data')
    shutil.rmtree(pathlib.Path(folder) / 'compiled', ignore_errors=True)
    return {how: _until_first_step(name, overrides, pathlib.Path(folder), how) for how in ('cold', 'warm')}


def _until_first_step(name, overrides, folder, how):
  """Runs the command in `folder`/`how` until its log tells of the first step, then ends the process."""
  log = folder / how / 'log.txt'
  named = ['--like', name] if rundir.is_run(name) else [name]        # a run goes on in its own folder
  words = ['train', *named, '--workdir', str(log.parent), *overrides]
  command = [sys.executable, '-m', 'stmoe.cli.main', *words]
  env = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(folder / 'compiled'),
             JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0.2')
  before, began, found = _cpu_of_children(), time.monotonic(), None
  with open(folder / f'{how}.txt', 'w+', encoding='utf-8') as said:
    process = subprocess.Popen(command, env=env, stdout=said, stderr=said)
    try:
      while found is None and process.poll() is None and time.monotonic() < began + PATIENCE:
        time.sleep(0.02)
        found = FIRST.search(log.read_text('utf-8')) if log.exists() else None
      seconds = time.monotonic() - began
    finally:
      process.kill()
      process.wait()
    if found is None:
      said.seek(0)
      last = (said.read().strip() or 'nothing').splitlines()[-1]
      raise errors.UserError(f'{name}: no first step; the command said: {last}')
  return dict(s=seconds, cpu_s=_cpu_of_children() - before, step_s=float(found.group(1)))


def _cpu_of_children():
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def compiling(cfg) -> dict[str, float]:
  """Returns dict(trace_cpu_s, compile_cpu_s) of the training step of `cfg` on one device.

  Processor seconds of this process: they say something on a machine that others use, too. The process is to
  have `jax_enable_compilation_cache` off.
  """
  jax.clear_caches()
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    began = time.process_time()
    _, lowered = aot.lower(cfg, mesh)
    traced = time.process_time()
    lowered.compile()
  return dict(trace_cpu_s=traced - began, compile_cpu_s=time.process_time() - traced)
