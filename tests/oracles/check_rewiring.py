"""Checks of rewiring (arXiv:2510.14853): vectors that learn on a text, phase by phase, and greedy texts.

A case names a tiny checkpoint, which is looked for beside the folder of the cases, and in
tests/data/checkpoints.
"""

import functools
import pathlib
import tempfile

import cases
import jax
import numpy as np
import pytest

from stmoe.decode.strategies import greedy
from stmoe.decode.strategies import rewire
from stmoe.derive import convert
from tests.interop import runs


def _checkpoint(case):
  name = pathlib.Path(case.config['checkpoint']).name
  folders = [folder / 'hf' for folder in case.path.resolve().parents]
  for folder in [*folders, cases.ROOT / 'tests' / 'data' / 'checkpoints']:
    if (folder / name).is_dir():
      return folder / name
  pytest.skip(f'the checkpoint {name} is not here')


@functools.cache
def _model(folder):
  with tempfile.TemporaryDirectory() as target:
    convert.read(folder, pathlib.Path(target) / 'run', say=print)
    model = runs.load(pathlib.Path(target) / 'run')[1]
  model.stacks()[-1].unroll()
  return model


def online(case):
  c, model = case.config, _model(_checkpoint(case))
  yes = {True: True}
  assert case.option('fresh_optimizer_each_phase', yes, True) and case.option(
      'deltas_kept_between_phases', yes, True)
  case.option('loss', {'mean next-token cross entropy over the whole current sequence': True})
  row = c['row']                                                     # of the checkpoint's inputs: the prompt
  assert isinstance(row, int) and len(case['prompt']) == c['prompt_length']
  fields = dict(steps=c['steps'], rate=c['lr'], interval=c['interval'], layers=tuple(c['layers']),
                confident=1.0, stop=False, eos_id=-1,
                optimizer=case.option('optimizer', dict(sgd='sgd', adamw='adamw')))
  strategy, new = rewire.Rewire(**fields), c['new_tokens']
  batch = runs.row('decoder', case['prompt'][None])
  ids = jax.jit(lambda model, batch: strategy(model, batch, new, None))(model, batch)
  plain = jax.jit(lambda model, batch: greedy.Greedy(eos_id=-1)(model, batch, new, None))(model, batch)
  whole = lambda ids: np.concatenate([case['prompt'], np.asarray(ids)[0]]).astype(np.int32)
  case.assert_close('greedy_adapted', whole(ids))
  case.assert_close('greedy_plain', whole(plain))
  lengths = np.arange(c['prompt_length'], c['prompt_length'] + new, c['interval'], dtype=np.int32)
  case.assert_close('phase_length', lengths)
  _check_phases(case, model, strategy.rule, whole(ids), lengths)


def _check_phases(case, model, rule, text, lengths):
  """Compares loss, gradient and vectors of every step, phase after phase on the first `lengths` tokens."""
  learn = jax.jit(lambda model, batch, vectors: rule.learn(rewire.adapting(model), batch, vectors,
                                                           rule.chosen(model, batch)))
  batch = lambda length: runs.row('decoder', text[None], np.arange(len(text))[None] < length)
  vectors, seen = rewire.zeros(model, batch(0)), []
  for length in lengths:
    vectors, steps = learn(model, batch(length), vectors)
    seen.append(steps)
  joined = lambda values: np.concatenate([np.asarray(value) for value in values])
  of_layers = lambda name: [joined([steps[name][layer][:, 0] for steps in seen])
                            for layer in case.config['layers']]
  _close(case, 'loss', joined([steps['losses'][:, 0] for steps in seen]))
  for ours, name in (('grads', 'grad'), ('vectors', 'delta')):
    _close(case, name, np.stack(of_layers(ours), axis=1))


def _close(case, name, value):
  """The stated tolerance is relative to the largest entry of the array."""
  expected = case[name]
  rtol, _ = case.limits(name)
  assert value.shape == expected.shape, (name, value.shape, expected.shape)
  np.testing.assert_allclose(value, expected, rtol=0, atol=rtol * np.abs(expected).max(), err_msg=name)
