"""The command line with the tiny experiment, for processes of a job; see tiny_run.py for --kill.

python tiny_job.py [--kill PLACE] [--signal NAME:STEP] [--break STEP] [--set FIELD=VALUE] COMMAND ...

--break STEP has this process fail to read the arrays of that step's checkpoint.
--set field=value is an override for this process only.
--signal sends this process the signal NAME after step STEP, 0 = before the first.
"""

import os
import pathlib
import signal
import sys

from stmoe import experiment
from stmoe.cli import main
from tests.train import tiny_run


def load(corpus, overrides):
  """Returns what `experiment.load` returns, of the tiny experiment on the corpus in folder `corpus`."""
  cfg = tiny_run.config(pathlib.Path(corpus))
  for override in overrides:
    experiment.apply(cfg, override)
  return cfg, 'tiny'


def send(text):
  """Arranges that this process gets signal NAME after step N of `text` NAME:N."""
  from stmoe.train import loop
  name, _, number = text.partition(':')
  advance = loop.Loop.advance

  def advance_and_signal(self):
    if self.step == int(number):
      os.kill(os.getpid(), signal.Signals[name])
    advance(self)
  loop.Loop.advance = advance_and_signal


def break_checkpoint(step):
  """Arranges that the arrays of the checkpoint of `step` cannot be read."""
  from orbax import checkpoint
  restore = checkpoint.CheckpointManager.restore

  def restore_or_raise(self, at, args=None):
    if at == int(step) and 'state' in args:
      raise ValueError('bytes are broken')
    return restore(self, at, args=args)
  checkpoint.CheckpointManager.restore = restore_or_raise


def take(argv, flag, act):
  """Has `act` called with the value of `flag` once the process has joined its job."""
  if flag not in argv:
    return
  value = argv.pop(argv.index(flag) + 1)
  argv.remove(flag)
  from stmoe.hosts import job
  enter = job.enter

  def enter_and_act(args):
    code = enter(args)
    if code is None:
      act(value)
    return code
  job.enter = enter_and_act


if __name__ == '__main__':
  experiment.load, experiment.names_one = load, os.path.isdir
  words = sys.argv[1:]
  if '--set' in words:
    at = words.index('--set')
    words = [*words[:at], *words[at + 2:], f'--config.{words[at + 1]}']
  take(words, '--kill', tiny_run.kill_at)
  take(words, '--signal', send)
  take(words, '--break', break_checkpoint)
  sys.exit(main.main(words))
