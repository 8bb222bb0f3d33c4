"""Makes the shards of a corpus that are missing, in several processes.

Every process reads the corpus, and tokenises and writes each shard whose turn it is. One job makes shards of
a folder at a time; another waits, and finds them there. A process ends when the one that started it is gone.
"""

import contextlib
import fcntl
import json
import os
import queue
import subprocess
import sys
import threading

from stmoe import errors
from stmoe.data import bar as progress
from stmoe.data import store
from stmoe.data.large import chunks

WORKER = (sys.executable, '-m', 'stmoe.data.large.shard_process')
LOCK = 'lock'
MOST = 8                                 # processes, where nothing is said: each reads the whole corpus
# Each process has one thread that tokenises.
ONE_THREAD = dict(TOKENIZERS_PARALLELISM='false', JAX_PLATFORMS='cpu', CUDA_VISIBLE_DEVICES='')


def usual():
  """Returns the number of processes where nothing is said."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return min(cores, MOST)


def make(shards, processes, spec, show=True, alone=True):
  """Returns the facts of all `shards` (sharded.Shards), of which the missing ones are made.

  Args:
    processes: how many share the work; 1 = this one.
    spec: dict, for JSON, of which shard_process.py makes the shards' task and vocabulary again.
    show: whether progress is shown.
    alone: whether this process may do the work itself, where it is that of one.
  """
  with _alone(shards.path):
    if facts := shards.facts():
      return facts
    shards.validation()
    with _shown(shards, show) as advance:
      itself = alone and processes == 1
      count = part(shards, 0, 1, advance) if itself else _in_processes(processes, spec, advance)
    store.sweep(shards.path / '*')
    return shards.seal(count)


def part(shards, worker, workers, advance=lambda read: None):
  """Returns the number of all shards, of which each whose turn it is to be made by `worker` is there.

  Args:
    advance: called with numbers of bytes of the corpus' files that were passed.
  """
  number = worker
  while shards.has(number):
    number += workers
  while number and not shards.has(number - 1):                       # from the last place that is known
    number -= 1
  for chunk in chunks.of(shards.task, shards.size, shards.ends(number - 1), advance):
    if number % workers == worker:
      shards.write(number, chunk)
    number += 1
  return number


def beside(shards, spec):
  """Makes the missing `shards` in the background; returns a function that raises where that has failed."""
  failed = []

  def work():
    try:
      make(shards, max(usual() // 2, 1), spec, show=False, alone=False)
    except errors.UserError as error:
      failed.append(error)
  threading.Thread(target=work, daemon=True).start()

  def check():
    if failed:
      raise failed[0]
  return check


@contextlib.contextmanager
def _alone(path):
  """Holds the lock of folder `path`, which a process that ends gives back; a folder without shards goes."""
  try:
    path.mkdir(parents=True, exist_ok=True)
    lock = open(path / LOCK, 'w')
  except OSError as error:
    raise errors.UserError(f'cannot write the cache {path}: {error.strerror}; set '
                           '--config.data.cache_dir=DIR') from error
  with lock as file:
    with progress.patience(f'waiting for another command that makes shards in {path}'):
      fcntl.flock(file, fcntl.LOCK_EX)
    try:
      yield
    finally:
      if os.listdir(path) == [LOCK]:
        (path / LOCK).unlink()
        path.rmdir()


def _shown(shards, show):
  if not show:
    return contextlib.nullcontext(lambda read: None)
  return progress.task(f'caching {shards.task.name} in shards', shards.task.size('train'), 'bytes')


def _in_processes(processes, spec, advance):
  """The number of all shards, which `processes` of our own have made."""
  said, running = queue.Queue(), []
  try:
    for worker in range(processes):
      running.append(subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      env=os.environ | ONE_THREAD, start_new_session=True))
      with contextlib.suppress(BrokenPipeError):                     # it has ended; _listen says so
        running[-1].stdin.write(json.dumps(spec | dict(worker=worker, workers=processes)) + '\n')
        running[-1].stdin.flush()
      threading.Thread(target=_listen, args=(running[-1], said), daemon=True).start()
    counts = []
    while len(counts) < processes:
      line = said.get()
      if 'error' in line:
        raise errors.UserError(line['error'])
      advance(line.get('read', 0) / processes)
      counts += [line['count']] if 'count' in line else []
  finally:
    for process in running:
      process.kill()
      process.wait()
  if len(set(counts)) > 1:
    raise errors.UserError('the files have changed while they were cached')
  return counts[0]


def _listen(process, said):
  """Puts what a process says into the queue `said`; at last, that it ended without saying its count."""
  line = {}
  for text in process.stdout:
    said.put(line := json.loads(text))
  if 'count' not in line:
    said.put(dict(error=f'a process that makes shards ended with code {process.wait()}; the same command '
                        'goes on'))
