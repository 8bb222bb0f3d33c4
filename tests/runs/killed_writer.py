"""The metrics of a run without a training, and a script that sends them until it kills itself with SIGKILL.

python killed_writer.py PATH WRITER MOMENT

MOMENT is `opened` when metrics.jsonl has step 2 and the service was told nothing, `told` when writers.json
says that the service has step 6, `sent` when the service has step 6 and writers.json does not say so.
"""

import os
import pathlib
import signal
import sys
import time

import ml_collections
import numpy as np

from stmoe.runs import by_step
from stmoe.runs import metrics_file
from stmoe.runs import writers

LOAD = {'sparse0': np.float32([0.5, 0.25, 0.25]), 'sparse1': np.float32([1, 0])}
STATS = (3, 6, 8)                                                      # no line of metrics has step 3


def config(*names):
  return ml_collections.ConfigDict(dict(seed=3, model=dict(layers=(('m', 1),)), log=dict(writers=names)))


def start(path, step, *names, say=print):
  """(metrics.jsonl, writers) of a run in `path` that continues after `step`."""
  lines = metrics_file.Metrics(path, step)
  by_step.drop_later(path, step)
  return lines, writers.Writers(path, step, lines.lines, config(*names), say)


def line(step):
  return {'loss/ce': step / 2, 'skipped': 0, 'bad': np.nan, 'time': dict(seconds=step, tokens_per_s=9.0)}


def log(path, opened, *steps):
  """Does what a training does after `steps`: loads of experts in STATS, a line of metrics at even steps."""
  lines, services = opened
  for step in steps:
    if step in STATS:
      by_step.write_router_stats(path, step, LOAD, {})
      services.loads(step, LOAD)
    if step % 2 == 0:
      services.write(step, lines.write(step, line(step)))


def kill(*_):
  os.kill(os.getpid(), signal.SIGKILL)


def main(path, name, moment):
  os.environ['WANDB__TRANSACTION_LOG_FLUSH_INTERVAL'] = '0.1'            # of wandb's file; 15 s by default
  opened = start(path, 0, name)
  if moment == 'opened':
    opened[0].write(2, line(2))
    kill()
  log(path, opened, 2, 3, 4)
  if moment == 'sent':
    def wait_and_kill(*_):
      time.sleep(0 if name == 'tensorboard' else 2)                      # until threads have sent step 6
      kill()
    writers.files.write_json = wait_and_kill
  log(path, opened, 6)
  kill()


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), *sys.argv[2:])
