"""`stmoe show --sharding`: bytes and specs of every array, on meshes of devices that do not exist."""

import jax
import pytest

from stmoe import experiment
from stmoe.analysis import flops
from stmoe.aot import sharding
from stmoe.train import state as states

NAME = 'lm/text:method=switch,smoke'


@pytest.fixture(scope='module')
def cfg():
  return experiment.load(NAME)[0]


def test_specs_and_bytes_are_those_of_a_real_state(cfg):
  sizes = dict(data=2, expert=2, model=2)
  cfg = cfg.copy_and_resolve_references()
  for axis, size in sizes.items():
    cfg.mesh[axis] = size
  with states.on_mesh(cfg.mesh) as mesh:
    state = states.init(cfg, states.blueprint(cfg, mesh))
  real = {part: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state[part]))
          for part in ('params', 'opt_state')}
  sums = sharding.totals(sharding.rows(cfg, sizes))
  assert {part: sums[part][2] for part in real} == real
  assert sums['params'][1] == 4 * flops.parameters(cfg)['total']
  assert sums['all'][0] == len(jax.tree.leaves(state))


def test_rules_on_a_mesh_of_64_devices(cfg):
  experts = lambda cfg: next(row for row in sharding.rows(cfg, dict(data=4, expert=8, model=2))
                             if row[0] == 'params' and row[1].endswith('experts/wi'))
  _, _, names, spec, shape, whole, piece = experts(cfg)
  assert names == ('layers', 'expert', 'expert_embed', 'expert_mlp') and tuple(spec) == (
      None, 'expert', None, 'model') and whole == 16 * piece
  split = cfg.copy_and_resolve_references()
  split.mesh.rules = 'fsdp'
  assert experts(split)[-1] * 4 == piece
