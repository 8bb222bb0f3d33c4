"""Frozen parameters do not change and have no slots; the parts are disjoint where they should be."""

import jax
import numpy as np
import pytest

from stmoe import errors
from stmoe.train import check
from stmoe.train import freeze
from stmoe.train import state as states
from stmoe.train import step as steps
from tests.train import tiny_run


def leaves(tree):
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return {name(path): x for path, x in jax.tree.leaves_with_path(tree)}


def test_put_replaces_what_take_took():
  tree = dict(a=dict(x=1, y=2), b=3)
  assert freeze.take(tree, {('a', 'y'), ('b',)}) == dict(a=dict(y=2), b=3)
  assert freeze.put(tree, dict(a=dict(y=5))) == dict(a=dict(x=1, y=5), b=3)


def plan_of(tmp_path, part, **changed):
  cfg = tiny_run.config(tmp_path, **changed)
  with cfg.unlocked():
    cfg.train.trainable = part
  return cfg, states.blueprint(cfg, states.make_mesh(cfg.mesh, jax.devices()[:1]))


@pytest.mark.parametrize('part', freeze.PARTS)
def test_only_the_chosen_part_changes(tmp_path, part):
  cfg, plan = plan_of(tmp_path, part, **{'train.microbatches': 2})
  with states.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    state = states.init(cfg, plan)
    before = {name: np.asarray(x) for name, x in leaves(state['params']).items()}
    rng = np.random.default_rng(0)
    shapes = check.batch_shapes(cfg, cfg.train.batch_size)
    batch = {name: np.ones(s.shape, np.int32) for name, s in shapes.items()}
    batch['decoder_target_tokens'] = rng.integers(3, 200, batch['decoder_target_tokens'].shape, np.int32)
    state['step'] = state['step'] + 2                                # past the warm-up from 0
    state, _ = steps.make(cfg, plan)(state, check.place(batch, mesh))
  changed = {name for name, x in leaves(state['params']).items() if (np.asarray(x) != before[name]).any()}
  chosen = {name for name in before if freeze.PARTS[part](name.split('/'))}
  assert changed <= chosen and changed                               # a gain at 1 may stay where it is
  assert {name for name in chosen if name.endswith(('wi', 'wo', 'wq'))} <= changed
  assert set(leaves(state['opt_state']['mu'])) == chosen


def test_expert_and_non_expert_are_everything(tmp_path):
  trained = [plan_of(tmp_path, part)[1].trained for part in ('expert', 'non_expert', 'all')]
  assert trained[0] | trained[1] == trained[2] and not trained[0] & trained[1] and trained[0]


def test_a_part_that_is_not_there(tmp_path):
  with pytest.raises(errors.UserError, match="train.trainable='experts'; nearest: expert"):
    plan_of(tmp_path, 'experts')
  with pytest.raises(errors.UserError, match='has no such parameters'):
    plan_of(tmp_path, 'expert', **{'model.layers': (('d', 1),)})
