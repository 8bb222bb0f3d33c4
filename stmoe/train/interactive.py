"""What notebooks and pages do with experiments: train one and read its run, open the model that it left."""

import os
import pathlib

import jax

from stmoe import errors
from stmoe import experiment
from stmoe.analysis import runs
from stmoe.data import pack
from stmoe.data import pipeline
from stmoe.train import checkpoint
from stmoe.train import loop
from stmoe.train import rundir
from stmoe.train import state as states


def train(name, workdir, overrides=()):
  """Returns the finished runs.Run of experiment `name` in `workdir`; what is trained already is only read.

  Args:
    name:      an experiment, 'lm/quickstart:method=switch'.
    overrides: texts 'a.b=value', or a dict of them.
  Raises:
    KeyboardInterrupt: training was interrupted; the same call continues.
  """
  if isinstance(overrides, dict):
    overrides = [f'{field}={value}' for field, value in overrides.items()]
  cfg, name = experiment.load(name, overrides)
  return train_config(cfg, workdir, name)


def train_config(cfg, workdir, name=''):
  """Returns the finished runs.Run of configuration `cfg`; as `train`.

  Nothing is shown on the way unless $STMOE_PROGRESS says so.
  """
  os.environ.setdefault('STMOE_PROGRESS', 'off')
  if loop.train(cfg, workdir, name):
    raise KeyboardInterrupt(f'{workdir} is saved; the same call continues')
  return runs.read(workdir)


def opened(path):
  """Returns (model of the newest checkpoint, configuration, vocabulary) of run directory `path`."""
  path = pathlib.Path(path)
  config = rundir.load(path)
  with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:  # wherever it was trained
    plan = states.blueprint(config, mesh)
  saved = checkpoint.Checkpoints(path / 'checkpoints', keep=None, read_only=True)
  found = saved.restore(plan.shapes, check=lambda meta: None, say=lambda line: None)
  saved.close()
  if found is None:
    raise errors.UserError(f'{path} has no checkpoint yet')
  _, arrays, _, _ = found
  return plan.model(arrays['params'], arrays['router_state']), config, pipeline.info(config)['vocab']


def batch(config, vocabulary, text):
  """Returns a batch of evaluation's shape, i32[B,T], with `text` in its rows, cut off where they are full.

  Raises UserError for a model that is no language model.
  """
  if 'length' not in config.data:
    raise errors.UserError('only a language model reads a plain text; this run is an encoder-decoder')
  length, rows = config.data.length, config.eval.batch_size
  filled = pack.empty(dict(decoder=length), rows)
  [ids] = vocabulary.encode([text])
  for row in range(min(rows, -(-len(ids) // length))):
    pack.fill(filled, row, [dict(decoder=ids[row * length:(row + 1) * length])])
  return filled
