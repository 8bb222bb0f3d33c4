"""The process that holds the GPU: programs are compiled by threads, jobs are timed while these stand still.

What compiles is begun for all jobs at once, in order of worth. Once the programs of the first job are there,
all jobs whose programs are there are timed in that order. Where the programs of the first take long, those
that are ready are timed meanwhile. The process tells its parent of
each job by a line of JSON: begin, then end. A job that fails is told so, and the next is done.
"""

import argparse
import concurrent.futures
import gc
import json
import os
import sys
import threading
import time

from stmoe.bench.device import compilers
from stmoe.bench.device import pending

THREADS = max((os.cpu_count() or 2) - 2, 2)
PATIENCE = 120.0                         # seconds for the programs of the most valuable job


def work(jobs, tell, deadline, threads=THREADS, patience=PATIENCE):
  """Does `jobs` and tells of each.

  Args:
    jobs:     dict `pending.Job` -> seconds that it may take, the most valuable first.
    tell:     function of a dict: dict(begin=name), dict(end=name, state, seconds, rows or error), or
      dict(skip=name) of a job that would not be done at the deadline.
    deadline: time.time() at which all must be done.
    patience: seconds that others wait for the programs of a more valuable job.
  """
  with compilers.Compilers(threads) as pool:
    waiting, expected = {}, {one.name: seconds for one, seconds in jobs.items()}
    for one in jobs:
      try:
        waiting[one.name] = one.begin(pool.submit)
      except Exception as error:  # noqa: BLE001 whatever it is, the other jobs are done
        tell(dict(end=one.name, state='failed', seconds=0.0, error=said(error)))
    while waiting and _wait(waiting, time.time() + patience, deadline):
      with pool.quiet():
        for name in _ready(waiting):
          _, finish = waiting.pop(name)
          if time.time() + expected[name] > deadline:
            tell(dict(skip=name))
            continue
          tell(dict(begin=name))
          tell(dict(end=name, **_done(finish)))
          del finish
          gc.collect()                   # the arrays of this job, which may be in circles


def _ready(waiting):
  """The names of `waiting` whose programs are there."""
  return [name for name, (futures, _) in waiting.items() if all(future.done() for future in futures)]


def _wait(waiting, patient, deadline):
  """Returns True once the programs of the first of `waiting` are there, or of any after `patient`."""
  while time.time() < deadline:
    ready = _ready(waiting)
    if ready and (ready[0] == next(iter(waiting)) or time.time() > patient):
      return True
    left = [future for futures, _ in waiting.values() for future in futures if not future.done()]
    concurrent.futures.wait(left, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED)
  return False


def _done(finish):
  """dict(state, seconds, rows or error) of a call of `finish`."""
  began = time.time()
  try:
    return dict(state='done', rows=finish(), seconds=time.time() - began)
  except Exception as error:  # noqa: BLE001 compilers, memory, libraries: one line, and on
    return dict(state='failed', error=said(error), seconds=time.time() - began)


def said(error):
  """Returns an error as a line."""
  return f'{type(error).__name__}: {" ".join(str(error).split())}'


def machine():
  """Returns dict(device, memory_gb, cpus, versions) of this process."""
  import importlib.metadata
  import importlib.util
  import platform

  import jax
  device = jax.local_devices()[0]
  versions = dict(python=platform.python_version(), **{
      name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'torch', 'transformers')
      if importlib.util.find_spec(name)})
  memory = (device.memory_stats() or {}).get('bytes_limit')
  return dict(device=device.device_kind, platform=device.platform, cpus=os.cpu_count(), versions=versions,
              memory_gb=memory and round(memory / 1e9, 1))


def main(argv=None):
  """Tells of the machine, then does the jobs that the command line names."""
  parser = argparse.ArgumentParser('python -m stmoe.bench.device.worker')
  parser.add_argument('--tell', type=int, required=True, help='descriptor of the parent\'s pipe')
  parser.add_argument('--deadline', type=float, required=True, help='seconds since 1970')
  parser.add_argument('--dry', action='store_true')
  parser.add_argument('names', nargs='+', metavar='NAME=SECONDS')
  args = parser.parse_args(argv)
  threading.Thread(target=_end_with_parent, daemon=True).start()
  pipe = os.fdopen(args.tell, 'w', encoding='utf-8')
  by_name = {one.name: one for one in pending.of(args.dry)}

  def tell(what):
    print(json.dumps(what), file=pipe, flush=True)
  tell(dict(machine=machine()))
  pairs = [word.rpartition('=') for word in args.names]
  work({by_name[name]: float(seconds) for name, _, seconds in pairs}, tell, args.deadline)
  pipe.flush()
  os._exit(0)                            # programs that compile still may take a minute to give up


def _end_with_parent():
  """Ends this process when the other end of standard input is closed: the parent is gone."""
  sys.stdin.buffer.read()
  os._exit(1)


if __name__ == '__main__':
  main()
