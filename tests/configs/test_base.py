"""BASE experiments: where the layers stand, and mistakes that are found before anything is compiled."""

import jax
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.configs.base import paper
from stmoe.configs.base import recipe
from stmoe.train import check
from stmoe.train import state


def runs(*args, **fields):
  """Dense blocks before, between and after the BASE layers."""
  pattern = recipe.placed(*args, **fields)
  assert all(count == 1 for letter, count in pattern if letter == 'm')
  return [count for letter, count in pattern if letter == 'd']


def test_placement():
  assert runs(24, 1) == [12, 12] == runs(24, 1, fairseq=True)
  assert runs(24, 2) == [8, 8, 8]
  assert runs(24, 3) == [6, 6, 6, 6]
  # Places 6, 12 and 18 of the list that has grown to 27.
  assert runs(24, 3, fairseq=True) == [6, 5, 5, 8]
  assert recipe.placed(24, top=True) == (('d', 24), ('m', 1))
  assert recipe.placed(25) == (('d', 12), ('m', 1), ('d', 13))


@pytest.mark.parametrize('name', paper.PLACEMENTS)
def test_placements_have_near_equal_parameters_and_all_blocks(name):
  cfg = experiment.load(f'base/placement:place={name}')[0]
  count = lambda letter: sum(n for found, n in cfg.model.layers if found == letter)
  sublayers = cfg.blocks.m.inner.experts.num_sublayers
  assert count('d') == 24 and 9 <= count('m') * sublayers <= 10


def refused(name, **router):
  """What is said of experiment `name` with these fields of its router."""
  cfg = experiment.load(name)[0].unlock()
  block = cfg.blocks.m.get('inner', cfg.blocks.m)
  block.router.update(router)
  mesh = state.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh), pytest.raises(errors.UserError) as caught:
    check.forward(cfg, state.blueprint(cfg, mesh))
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_sizes_that_do_not_divide():
  said = refused('base/small:smoke', num_experts=6)
  assert 'num_experts=6 does not divide the 256 tokens' in said and 'nearest group_size: 252, 258' in said


@pytest.mark.parametrize('name', ['base/small:smoke', 'base/s_base:smoke'])
def test_a_causal_stack_must_be_allowed(name):
  assert 'set allow_causal=True' in refused(name, allow_causal=False)
