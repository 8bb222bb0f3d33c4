"""Every variant that an experiment lists trains in its smoke form, as far as shows before a compilation."""

import functools

import jax
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe.configs import common
from stmoe.configs.lm import methods
from stmoe.train import check
from stmoe.train import state

NAMES = list(experiment.available())
LM = [name for name in NAMES if name.startswith('lm/')]


@functools.cache
def load(name):
  return experiment.load(name)[0]


def smokes(name):
  """The smoke forms of the variants that the file of `name` lists."""
  listed = getattr(experiment.find_module(name)[1], 'VARIANTS', ())
  return [f'{name}:{arg},smoke' for arg in listed if 'smoke' not in arg.split(',')]


def routers(cfg):
  return [common.innermost(block.router) for block in map(common.sparse, cfg.blocks.values()) if block]


def accept(cfg):
  """Raises UserError for what `stmoe train` refuses about `cfg` before it compiles, on one device."""
  with state.on_mesh(cfg.mesh, jax.devices()[:1]) as mesh:
    check.counts(cfg)
    plan = state.blueprint(cfg, mesh)
    check.forward(cfg, plan)
    check.needed(cfg, plan)


@pytest.mark.parametrize('name', NAMES)
def test_a_token_has_no_more_choices_than_there_are_experts(name):
  for one in smokes(name):
    for router in routers(load(one)):
      if router.get('k') and 'num_experts' in router:
        assert router.k <= router.num_experts + (router.get('num_null') or 0), one


def test_smoke_lowers_choices_with_the_experts():
  router = load('upcycling/fine_grained:granularity=16,smoke').blocks.m.router
  assert (router.num_experts, router.k) == (8, 8)


@pytest.mark.parametrize('name', NAMES)
def test_what_has_no_router_weighs_no_loss_of_routers(name):
  if routers(load(f'{name}:smoke')):
    for one in smokes(name):
      if not routers(load(one)):
        accept(load(one))


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_every_variant_is_accepted(name):
  for one in smokes(name):
    try:
      accept(load(one))
    except errors.UserError as refusal:
      assert 'needs a table made before training: stmoe tables' in str(refusal)    # of the user's own text


@pytest.mark.parametrize('name', LM)
def test_every_method_loads_in_its_smoke_form(name):
  for method in methods.table():
    try:
      load(f'{name}:method={method},smoke')
    except errors.UserError as refusal:
      assert 'is not causal' in str(refusal)
