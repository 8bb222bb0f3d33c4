"""What every adaptation must do: what it puts beside a dense language model begins without an effect."""

import functools

import jax
import numpy as np

from stmoe import lookup
from stmoe.conform import generic
from stmoe.conform.derived import operation
from stmoe.core import checked
from stmoe.surgery import layout
from stmoe.surgery import sparse
from stmoe.train import state as states

# As wide as ranks are usual.
BASE = *operation.DENSE, 'model.d_model=32', 'model.head_dim=16', 'blocks.d.d_ff=32', 'blocks.m.d_ff=32'


def the_base_stays(name: str, **fields) -> None:
  """The new model has the arrays of the base where they were, and says what the base says as it begins."""
  base, adapted, _ = _adapted(name, **fields)
  found, wanted = (operation.told(arrays) for arrays in (adapted.arrays, base.arrays))
  for path, array in wanted.items():
    assert found.get(path) == array, (
        f'{"/".join(map(str, path))} is {found.get(path, "not there")} in the new model; wanted: {array}')
  np.testing.assert_allclose(adapted.logits(), base.logits(), rtol=1e-4, atol=1e-4,
                             err_msg='what is beside the base changes what it says from the beginning')


def what_is_new_trains(name: str, **fields) -> None:
  """Something is new, and nothing but what is new trains."""
  base, adapted, params = _adapted(name, **fields)
  trains = operation.told(layout.numbered(adapted.plan.trainable(params)))
  assert trains, "nothing trains; wanted: changes such as {'train.trainable': 'adapter'}"
  old = sorted('/'.join(map(str, path)) for path in trains.keys() & operation.told(base.arrays).keys())
  assert not old, f"{old[0]} of the base trains; wanted: changes such as {{'train.trainable': 'adapter'}}"


def the_same_each_time(name: str, **fields) -> None:
  """Called twice it returns the same changes, and the configuration that it was given stays as it is."""
  cfg = operation.model(*BASE).cfg
  before, changes = cfg.to_dict(), _changes(name, fields)
  assert cfg.to_dict() == before, 'the configuration that was given is changed'
  assert changes == _changes(name, fields), 'a second call returns other changes'


def _changes(name, fields):
  changes = functools.partial(lookup.module('adaptation', name).adapt, **fields)(operation.model(*BASE).cfg)
  assert isinstance(changes, dict), f"it returned {checked.told(changes)}; wanted: dict 'a.b' -> value"
  return changes


@generic.cached
def _adapted(name, **fields):
  """(Model of the base, the same with what is beside it as it begins, parameters of the latter)."""
  base = operation.model(*BASE)
  cfg = sparse.changed(base.cfg, _changes(name, fields)).lock()
  plan = operation.plan(cfg)
  with states.on_mesh(cfg.mesh, jax.devices()[:1]):
    state = states.init(cfg, plan)
  arrays = layout.numbered(layout.together(*(state[part] for part in operation.PARTS)))
  return base, operation.Model(cfg, plan, layout.together(arrays, base.arrays)), state['params']
