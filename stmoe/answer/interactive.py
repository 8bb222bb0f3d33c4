"""What notebooks and pages do with experiments: train and read a run, open the model that it left."""

import contextlib
import io
import os
import pathlib

import jax

from stmoe import errors
from stmoe import experiment
from stmoe.answer import infer
from stmoe.checkpoints import checkpoint
from stmoe.data import batches as pipeline
from stmoe.data import record as records
from stmoe.data.text import pack
from stmoe.derive import downloaded
from stmoe.derive import finetune as finetuning
from stmoe.runs import directory as rundir
from stmoe.runs import read as runs
from stmoe.train import loop
from stmoe.train import state as states

BATCH = 8                                # prompts at once


def train(name, workdir, overrides=()):
  """Returns the finished runs.Run of experiment `name` in `workdir`; what is trained already is only read.

  Args:
    name:      an experiment, 'lm/quickstart:method=switch'.
    overrides: texts 'a.b=value', or a dict of them.
  Raises:
    KeyboardInterrupt: training was interrupted; the same call continues.
  """
  cfg, name = experiment.load(name, texts(overrides))
  return train_config(cfg, workdir, name)


def train_config(cfg, workdir, name=''):
  """Returns the finished runs.Run of configuration `cfg`; as `train`.

  Only the last line of what training says is printed, unless $STMOE_PROGRESS is set.
  """
  return _read(workdir, lambda: loop.train(cfg, workdir, name))


def texts(overrides):
  """Returns overrides, a dict or texts, as a list of texts.

  >>> texts({'train.steps': 10, 'eval.every': 5})
  ['train.steps=10', 'eval.every=5']
  """
  if isinstance(overrides, dict):
    return [f'{field}={value}' for field, value in overrides.items()]
  return list(overrides)


def _read(workdir, work):
  """The Run in `workdir` after `work`, which returns the exit code of training."""
  with said() as lines:
    code = work()
  if code:
    raise KeyboardInterrupt(f'{workdir} is saved; the same call continues')
  for line in lines[-1:]:
    print(f'{pathlib.Path(workdir).name}: {line}')
  return runs.read(workdir)


def finetune(start, name, workdir, overrides=()):
  """Returns the finished runs.Run of fine-tuning experiment `name` from run directory `start`; as `train`.

  start: or a downloaded folder.
  """
  start = downloaded.resolved(start)
  cfg, name = finetuning.prepare(name, texts(overrides), start)
  return _read(workdir, lambda: finetuning.finetune(start, cfg, workdir, name, say=lambda line: None))


def generate(path, prompts, decode, length, step=None):
  """Returns the texts that the model in run directory or downloaded folder `path` adds to each of `prompts`.

  Args:
    prompts: texts, or dicts as lines of a .jsonl file have them: {'inputs': 'a', 'given/domain': 1}.
    decode: name and fields of a strategy, dict(name='sample', temperature=0.8).
    length: most tokens of a text.
    step:   of the checkpoint; None = the newest.
  """
  path = downloaded.resolved(path)
  fields = [dict(inputs=prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
  rows = [(f'prompt {i}', infer.prompted(f'prompt {i}', of), of) for i, of in enumerate(fields)]
  batches = infer.texts(rundir.opened(path, step), path, rows, decode, length, BATCH, say=lambda line: None,
                        step=step)
  return [text for batch in batches for _, text in batch]


@contextlib.contextmanager
def said():
  """Gives a list that in the end has the lines of stderr, which are shown only if $STMOE_PROGRESS is set."""
  lines, captured = [], io.StringIO()
  if os.environ.get('STMOE_PROGRESS'):
    yield lines
    return
  with contextlib.redirect_stderr(captured):
    yield lines
  lines += captured.getvalue().splitlines()


def opened(path, step=None):
  """Returns (model, configuration, vocabulary) of run directory or downloaded folder `path`.

  The vocabulary is None for a model that was imported without one: such a model reads ids, and no texts.

  step: of the checkpoint; None = the newest.
  """
  path = downloaded.resolved(path)
  config, record = rundir.opened(path, step), records.read(path)
  with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as mesh:  # wherever it was trained
    plan = states.blueprint(record.located(config), mesh)
  with contextlib.closing(checkpoint.Checkpoints(path / 'checkpoints', keep=None, read_only=True)) as saved:
    restored = saved.restore(plan.shapes, check=lambda meta: None, say=lambda line: None, step=step)
  if restored is None:
    raise errors.UserError(f'{path} has no checkpoint yet')
  _, state, _, _ = restored
  return plan.model(plan.evaluated(state), state['router_state']), config, _vocabulary(config, path, record)


def _vocabulary(config, path, known):
  if config.data.get('vocab') == '':
    return None
  if 'vocab' in config.data:
    return pipeline.vocabulary(config, found=known)
  return pipeline.source(config, path).info()['vocab']


def batch(config, vocabulary, text):
  """Returns a batch of evaluation's shape, i32[B,T], with `text` in its rows, cut off where they are full.

  Raises UserError for a model that is no language model, or has no vocabulary.
  """
  if 'length' not in config.data:
    raise errors.UserError('only a language model reads a plain text; this run is an encoder-decoder')
  length, rows = config.data.length, config.eval.batch_size
  filled = pack.empty(dict(decoder=length), rows)
  vocabulary = vocabulary or pipeline.vocabulary(config)             # the error says what is missing
  [ids] = vocabulary.encode([text])
  for row in range(min(rows, -(-len(ids) // length))):
    pack.fill(filled, row, [dict(decoder=ids[row * length:(row + 1) * length])],
              start=config.model.get('start_id', 0))
  return filled
