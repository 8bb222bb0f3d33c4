"""Letters of layers that are to have numbers of experts of their own."""

import types

from stmoe.surgery import fewer
from stmoe.surgery import sparse
from tests.surgery import trained


def test_deep_models_have_letters_enough():
  cfg = trained.config(layers=(('m', 60),))
  paths = [('decoder', 'layers', at, 'layer') for at in range(60)]
  layers = [types.SimpleNamespace(where='blocks.m', path=path) for path in paths]
  changes = fewer.apart(cfg, layers, {path: 2 + at for at, path in enumerate(paths)})
  changed = sparse.changed(cfg, changes)
  [(letters, repeats)] = changed.model.layers
  assert repeats == 1 and len(set(letters)) == 60
  assert [changed.blocks[letter].router.num_experts for letter in letters] == list(range(2, 62))
