"""CompeteSMoE's layer: who competes when, in a scan and in a loop, on a mesh, and what is learned from it."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import experiment
from stmoe import lookup
from stmoe.analysis import flops
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.layers import compete_smoe as layers
from stmoe.parts import stack
from stmoe.routers import compete_smoe

D, E, STEPS, LAYERS = 4, 4, 20, 3
ROUTER = dict(name='compete_smoe', num_experts=E, total_steps=STEPS, num_layers=LAYERS, rate=0.3, warm_up=0.1,
              most=1)
LAYER = dict(layer='compete_smoe', executor='einsum', router=ROUTER, experts=dict(name='mlp', d_ff=6,
                                                                                 init_scale=1.0))
X = np.random.default_rng(0).normal(size=(8, 4, D)).astype(np.float32)
MASK = np.arange(4) < np.array([[4], [2]] * 4)


def context(step, train=True):
  return contract.Context(**contract.numbered(jnp.asarray(MASK)), step=jnp.int32(step),
                          tokens=jnp.float32(MASK.sum()), train=train)


def build(scan_layers):
  blocks = dict(m=LAYER | dict(attention=False))
  return stack.Stack(D, name='decoder', pattern=(('m', LAYERS),), blocks=blocks, scan_layers=scan_layers,
                     rngs=nnx.Rngs(0))


def build_layer():
  fields = {key: value for key, value in LAYER.items() if key != 'layer'}
  return lookup.recipe('layer', {'name': LAYER['layer']} | fields)(D, rngs=nnx.Rngs(1))


def table():
  """bool[L,S] as the routers have it, from the first step on."""
  first = int(0.1 * STEPS)
  return np.pad(compete_smoe.table(0, LAYERS, STEPS - first, 0.3, 1), ((0, 0), (first, 0)))


@functools.cache
def run(scan_layers):
  """(competes [S,L], loss [S], output of step S - 1) of every step."""
  model = build(scan_layers)

  @jax.jit
  def at(model, step):
    y, aux = model(jnp.asarray(X), context(step))
    return jnp.stack([a.metrics['competes'] for a in aux.values()]), sum(
        a.losses['distillation'] for a in aux.values()), y
  found = [at(model, step) for step in range(STEPS)]
  return np.array([f[0] for f in found]), np.array([f[1] for f in found]), found[-1][2]


def test_layers_compete_when_the_schedule_says_so():
  competes, distillation, _ = run(True)
  np.testing.assert_array_equal(competes.T > 0, table())
  assert competes.sum(axis=1).max() == 1 and competes.sum() > LAYERS and not competes[:2].any()
  np.testing.assert_array_equal(distillation > 0, competes.any(axis=1))


@pytest.mark.slow
def test_a_loop_competes_like_a_scan():
  np.testing.assert_array_equal(run(False)[0], run(True)[0])


@pytest.mark.slow
@pytest.mark.parametrize('competing', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_microbatches_and_a_mesh_change_nothing(competing):
  step = int(np.flatnonzero(table()[0] == competing)[-1])
  layer = build_layer()

  def value(layer, x, mask):
    ctx = context(step)
    ctx = ctx.replace(**contract.numbered(mask))
    y, aux, _ = layer(x, ctx, layer.init_carry(x))
    return jnp.sum(jnp.where(mask[..., None], jnp.sin(y), 0)) + sum(aux.losses.values()), aux.load

  run = jax.jit(jax.value_and_grad(value, has_aux=True))
  (whole, load), grads = run(layer, X, MASK)
  halves = [run(layer, X[part], MASK[part]) for part in (slice(0, 4), slice(4, 8))]
  np.testing.assert_allclose(sum(h[0][0] for h in halves), whole, rtol=1e-5)
  np.testing.assert_array_equal(sum(h[0][1] for h in halves), load)
  with axes.use(axes.make_mesh(2, 4, 1)):
    (meshed, spread), others = run(layer, X, MASK)
  np.testing.assert_allclose(meshed, whole, rtol=1e-5)
  np.testing.assert_array_equal(spread, load)
  for got, want in zip(jax.tree.leaves(others), jax.tree.leaves(grads)):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_competing_router_learns_by_its_own_loss_alone():
  """Experts get the task's gradient, through their weights as well; the router does not."""
  layer = build_layer()

  def task(layer, weight):
    y, aux = layer.compete(jnp.asarray(X), context(0))
    return jnp.sum(jnp.sin(y)) + weight * aux.losses['distillation']
  grad = jax.jit(jax.grad(task))
  assert not np.any(grad(layer, 0.0).router.w[...]) and np.any(grad(layer, 1.0).router.w[...])
  assert np.any(grad(layer, 0.0).experts.wo[...])


def test_likeness_counts_the_diagonal_as_zero():
  outputs = jnp.ones((2, 1, 1, 3))                                   # two equal answers
  np.testing.assert_allclose(layers.likeness(outputs, jnp.array([[[0, 1]]])), [[0.5]], rtol=1e-6)


def test_training_costs_more_rows_and_evaluation_does_not():
  layer = build_layer()
  np.testing.assert_allclose(layer.more_rows, table().mean() * (E - 2), rtol=1e-6)
  carry = layer.init_carry(X)
  _, aux, _ = jax.eval_shape(lambda x: layer(x, context(0, train=False), carry), X)
  assert 'competes' not in aux.metrics


def test_flops_of_training_count_what_competitions_compute():
  config, _ = experiment.load('lm/quickstart:method=compete_smoe')
  cost, block = flops.active_per_token(config), config.blocks.m
  layers_of_m = sum(letters.count('m') * repeats for letters, repeats in config.model.layers)
  share = lookup.recipe('router', block.router)(8, rngs=nnx.Rngs(0)).share()
  expert = 2 * 2 * config.model.d_model * block.experts.d_ff         # two matrices, forward
  more = 3 * layers_of_m * share * (block.router.num_experts - block.router.k) * expert
  assert 0.04 < share < 0.1
  np.testing.assert_allclose(cost['train'] - 3 * cost['forward'], more, rtol=1e-9)


def test_another_router_is_refused():
  fields = {'name': 'compete_smoe', 'router': dict(name='smoe', num_experts=4), 'experts': LAYER['experts']}
  with pytest.raises(UserError, match='router smoe has no schedule of competitions; nearest: router.name'):
    lookup.recipe('layer', fields)(D, rngs=nnx.Rngs(0))
