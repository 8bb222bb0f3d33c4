"""What the compiled training step moves between devices: what the design says, and nothing else of size."""

import jax
import pytest

from stmoe.aot import hlo
from stmoe.aot import program
from stmoe.aot import step as aot
from tests.train import test_mesh

SMALL = 1024                             # bytes: counts, sums of losses, loads


def moved(executor, mesh, rules='', **fields):
  """(Blueprint, [(kind, scope, bytes)] of the collectives above SMALL) of the step of an ST-MoE model."""
  cfg = test_mesh.config('st_moe', executor, mesh, rules, **fields)
  plan, compiled, _ = aot.build(cfg, jax.devices())
  found = program.collectives(hlo.parse(compiled.as_text()), 8)
  large = [c for c in found if c.bytes > SMALL]
  assert rules or not any(c.kind in ('all-gather', 'collective-permute') for c in large)
  return plan, [(c.kind, c.scope, c.bytes) for c in large]


def bytes_of(plan, experts):
  """Bytes on one device of the parameters that are the experts', or that are not."""
  local = lambda s: 4 * jax.numpy.prod(jax.numpy.array(s.sharding.shard_shape(s.shape))).item()
  leaves = jax.tree.leaves_with_path(plan.shapes['params'])
  return sum(local(s) for path, s in leaves if ('experts' in jax.tree_util.keystr(path)) == experts)


THERE_AND_BACK = ['forward/dispatch', 'forward/combine', 'backward/combine', 'backward/dispatch']


@pytest.mark.parametrize('executor', [
    'all_to_all', pytest.param('all_to_all_dropless', marks=pytest.mark.slow)])
def test_expert_parallel_step(executor):
  plan, found = moved(executor, (2, 4, 1))
  tokens = [scope for kind, scope, _ in found if kind == 'all-to-all']
  assert tokens == THERE_AND_BACK
  sums = sorted(c[2] for c in found if c[0] == 'all-reduce')
  assert len(found) == len(tokens) + len(sums) == 6
  # Gradients: the experts' over the two devices that hold the same ones, all others over all devices.
  assert sums[0] == bytes_of(plan, experts=True)
  assert bytes_of(plan, experts=False) <= sums[1] < bytes_of(plan, experts=False) + SMALL


@pytest.mark.slow
def test_optimizer_and_data_parallel_experts_move_gradients_only():
  plan, found = moved('all_to_all', (8, 1, 1))
  assert {kind for kind, *_ in found} == {'all-reduce'}
  whole = bytes_of(plan, experts=True) + bytes_of(plan, experts=False)
  assert whole <= sum(size for *_, size in found) < whole + SMALL


@pytest.mark.slow
def test_experts_cut_over_model():
  _, found = moved('all_to_all', (2, 2, 2), d_model=128)             # two heads
  tokens = [scope for kind, scope, _ in found if kind == 'all-to-all']
  assert tokens == THERE_AND_BACK


@pytest.mark.slow
def test_fully_sharded_parameters_are_gathered_layer_by_layer():
  plan, found = moved('all_to_all', (2, 4, 1), 'fsdp')
  largest = max(size for kind, _, size in found if kind == 'all-gather')
  shapes = [s for s in jax.tree.leaves(plan.shapes['params']) if s.ndim > 1]
  assert all(s.sharding.shard_shape(s.shape) != s.shape for s in shapes if s.size > SMALL)
  assert largest <= 4 * max(s.size // (s.shape[0] if s.ndim > 2 else 1) for s in shapes)
