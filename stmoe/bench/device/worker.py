"""The process of a job: its programs are compiled by threads; once told so by its parent, the job is timed.

The process tells its parent by lines of JSON: the machine; that it is ready; the end.
"""

import argparse
import concurrent.futures
import json
import os
import sys
import time

from stmoe.bench.device import pending

THREADS = 4


def work(job, tell, wait, threads=THREADS):
  """Does a `pending.Job`.

  Args:
    tell: function of a dict: dict(ready=seconds of compiling), then dict(state, seconds, rows or error).
    wait: function that returns once the job may be timed: True, or False where nobody waits for it any more.
    threads: that compile.
  """
  began = time.time()
  try:
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      futures, finish = job.begin(pool.submit)
      concurrent.futures.wait(futures)
  except Exception as error:  # noqa: BLE001 whatever it is, it is told
    tell(dict(state='failed', seconds=0.0, error=said(error)))
    return
  tell(dict(ready=time.time() - began))
  if wait():
    tell(_done(finish))


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
  """Tells of the machine, then does the job that the command line names."""
  parser = argparse.ArgumentParser('python -m stmoe.bench.device.worker')
  parser.add_argument('--tell', type=int, required=True, help='descriptor of the parent\'s pipe')
  parser.add_argument('--dry', action='store_true')
  parser.add_argument('name')
  args = parser.parse_args(argv)
  pipe = os.fdopen(args.tell, 'w', encoding='utf-8')

  def tell(what):
    print(json.dumps(what), file=pipe, flush=True)
  tell(dict(machine=machine()))
  [job] = [job for job in pending.of(args.dry) if job.name == args.name]
  work(job, tell, sys.stdin.buffer.readline)                         # b'' once the parent is gone
  os._exit(0)                            # threads of libraries still may take a while to give up


if __name__ == '__main__':
  main()
