"""Surgeries look at data before they read an array: so a text that is missing is asked for at once."""

import functools

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.derive import foreseen
from stmoe.surgery import aside
from stmoe.surgery import layout
from stmoe.train import state as states

KINDS = dict(surgery='switch', factorisation='dense')                # kind -> a model for it
LONG = ('mpoe',)                         # compiles much
NAMES = [pytest.param(kind, name, marks=[pytest.mark.slow] * (name in LONG))
         for kind in KINDS for name in lookup.available(kind)]
CHANGES = [f'--config.{text}' for text in (
    'data.task=text', 'data.files=a,b', 'model.d_model=16', 'model.head_dim=8', 'model.vocab_size=64')]


@functools.cache
def model(method):
  """(configuration, shapes of all numbers) of a small model, of which nothing is made."""
  cfg, _ = experiment.load(f'lm/quickstart:method={method},smoke', CHANGES)
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    shapes = states.blueprint(cfg, mesh).shapes
  return cfg, layout.together(shapes['params'], shapes['router_state'])


@pytest.mark.parametrize('kind, name', NAMES, ids=lambda word: word)
def test_data_are_asked_for_before_an_array_is_read(kind, name):
  cfg, shapes = model(KINDS[kind])
  read = []

  def deferred(path, x):
    def ones(index):
      read.append(jax.tree_util.keystr(path))
      return np.ones(x.shape, x.dtype)[index]
    return aside.Deferred(x.shape, x.dtype, ones)

  def look(*names, data=None):
    assert not read, f'{name} looks at {names} after it read {read}'
    raise foreseen._Looks

  try:
    lookup.bound(kind, name)(layout.numbered(jax.tree.map_with_path(deferred, shapes)), cfg, look)
  except (foreseen._Looks, errors.UserError):                        # or the model is none for this surgery
    pass
