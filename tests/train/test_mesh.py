"""Every compared method trains on every mesh as on one device: losses, gradients, routing decisions.

The whole matrix, all methods x 6 meshes x 3 executors, is in the slow suite.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import sections
from stmoe.configs import common
from stmoe.configs.lm import methods
from stmoe.layers import adam_momentum
from stmoe.train import check
from stmoe.train import router_losses as losses
from stmoe.train import state as states
from stmoe.train import step as steps

ROWS, LENGTH, VOCAB, EXPERTS, STEPS = 8, 16, 32, 8, 5
MESHES = [(8, 1, 1), (1, 8, 1), (4, 2, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)]
EXECUTORS = ['all_to_all', 'all_to_all_dropless', 'einsum']
METHODS = [name for name in methods.table() if name not in ('dense', 'gmlp')]
# The auction ends with tokens that are indifferent between experts up to its epsilon, so that round-off of x
# decides; tests/routers/test_base.py runs it on several devices with equal affinities.
# More noise makes the load loss of V-MoE smoother: with its own, float32 round-off grows to 1.3e-5 of that
# loss in five steps over 1x1x8 (with all arithmetic in float64: 3e-14).
# MoFME's mean and deviation of several passes cancel: float32 has four digits of its gradients.
OWN = dict(base=dict(assignment='greedy_balanced'), expert_choice=dict(allow_causal=True),
           vmoe=dict(noise_std=4.0), mofme=dict(passes=0))
# What no axis of a mesh splits: the one head at this size; experts of one unit; two experts.
RULES = dict(smlp='heads=', peer='expert_mlp=', mixture_of_supernets='expert=')
# The first is in the default run, where tests/core/transport has the other executors and foldings of devices,
# tests/train/test_statistics.py state across steps.
COVERING = [('st_moe', 'all_to_all', (2, 2, 2), ''),
            pytest.param('st_moe', 'all_to_all_dropless', (2, 2, 2), 'fsdp,folded', marks=pytest.mark.slow),
            pytest.param('loss_free_balancing', 'einsum', (1, 4, 2), '', marks=pytest.mark.slow)]


@pytest.fixture(autouse=True, scope='module')
def well_conditioned():
  """A larger epsilon under the root of AdamSMoE, which divides by moments near 0.

  Round-off of 1e-7 in its input is 3e-5 in its gradients; with all arithmetic in float64 they agree to 5e-14
  with the published epsilon, too.
  """
  epsilon, adam_momentum.EPSILON = adam_momentum.EPSILON, 1e-4
  yield
  adam_momentum.EPSILON = epsilon


def config(method, executor='einsum', mesh=(1, 1, 1), rules='', weighted=True, d_model=64):
  """The ConfigDict of a small model of `method`; `weighted` gives each of its router losses a coefficient."""
  c, row = common.config(), methods.find(method)
  methods.put(c, row, EXPERTS, d_ff=128, num_layers=2, length=LENGTH, vocab_size=VOCAB, d_model=d_model,
              backbone='lm' if row['backbone'] == 't5' else None)
  for block in c.blocks.values():
    layer = common.sparse(block)
    if layer is not None:
      layer.executor = executor
      router = common.innermost(layer.router)
      router.num_experts = -(-router.num_experts // EXPERTS) * EXPERTS               # 31 and one shared: 32
      router.update(OWN.get(router.name, {}))
  c.data = common.data('stdlib', length=LENGTH)
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.95, weight_decay=0.1)
  c.schedule = dict(name='constant', value=1e-3)
  c.train.update(batch_size=ROWS, steps=STEPS)
  c.eval.batch_size = ROWS
  c.mesh.update(dict(zip(('data', 'expert', 'model'), mesh)),
                rules=','.join(filter(None, (rules, RULES.get(method)))))
  sections.complete(c)
  with states.on_mesh(dict(data=1, expert=1, model=1), jax.devices()[:1]) as one:
    c.losses = {name: (0.0, 'mean') for name in c.losses}            # the method may report others
    names = losses.reported(check.forward(c, states.blueprint(c, one)))
  c.losses = {name: (0.01 if weighted else 0.0, 'mean') for name in names}
  return c.lock()


@functools.cache
def batches():
  """Batches of rows of several lengths."""
  rng, made = np.random.default_rng(0), []
  for _ in range(STEPS):
    real = np.arange(LENGTH) < rng.integers(LENGTH // 2, LENGTH + 1, (ROWS, 1))
    real[:2] = True
    ids = rng.integers(1, VOCAB, (ROWS, LENGTH)) * real
    parts = dict(input_tokens=np.pad(ids[:, :-1], ((0, 0), (1, 0))), target_tokens=ids, loss_weights=real,
                 segment_ids=real, positions=np.arange(LENGTH) * real)
    made.append({f'decoder_{name}': part.astype(np.int32) for name, part in parts.items()})
  return made


def train(cfg):
  """(reports of all steps, gradients of the first as Adam's first moment has them, last parameters)."""
  size = np.prod([cfg.mesh[axis] for axis in ('data', 'expert', 'model')])
  with states.on_mesh(cfg.mesh, jax.devices()[:size]) as mesh:
    check.batches(cfg)
    plan = states.blueprint(cfg, mesh)
    state, step, reports, gradients = states.init(cfg, plan), steps.make(cfg, plan), [], None
    for batch in batches():
      state, report = step(state, check.place(batch, mesh))
      reports.append(jax.device_get(report))
      gradients = jax.device_get(state['opt_state']['mu']) if gradients is None else gradients
    return reports, gradients, jax.device_get(state['params'])


@functools.lru_cache(maxsize=2)
def alone(method, weighted):
  return train(config(method, weighted=weighted))


def norm(tree):
  return np.sqrt(sum(float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(tree)))


def assert_as_alone(method, executor, mesh, rules='', weighted=True):
  """Asserts what the file says of five steps of `method`."""
  reports, gradients, _ = train(config(method, executor, mesh, rules, weighted))
  wanted, wanted_gradients, _ = alone(method, weighted)
  for step, (report, want) in enumerate(zip(reports, wanted)):
    where = f'step {step}'
    for layer, load in want['load'].items():
      np.testing.assert_array_equal(report['load'][layer], load, f'{where} {layer}')
    for name, value in want.items():
      if name.startswith('loss/'):
        np.testing.assert_allclose(report[name], value, rtol=1e-5, atol=1e-7, err_msg=f'{where} {name}')
  assert norm(jax.tree.map(jnp.subtract, gradients, wanted_gradients)) <= 1e-5 * norm(wanted_gradients)


@pytest.mark.parametrize('method, executor, mesh, rules', COVERING)
def test_a_mesh_changes_nothing(method, executor, mesh, rules):
  assert_as_alone(method, executor, mesh, rules)


@pytest.mark.slow
@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize('mesh', MESHES, ids=lambda mesh: 'x'.join(map(str, mesh)))
@pytest.mark.parametrize('method', METHODS)
def test_every_method_on_every_mesh(method, mesh, executor):
  assert_as_alone(method, executor, mesh)


@pytest.mark.slow
@pytest.mark.parametrize('executor', EXECUTORS)
@pytest.mark.parametrize('method', METHODS)
def test_without_router_losses(method, executor):
  assert_as_alone(method, executor, (2, 2, 2), weighted=False)


@pytest.mark.slow
@pytest.mark.parametrize('rules', ['fsdp', 'folded', 'fsdp,folded'])
@pytest.mark.parametrize('method', METHODS)
def test_other_rules(method, rules):
  assert_as_alone(method, 'all_to_all', (2, 2, 2), rules)
