"""Chained experts: turns, residuals, reports, FLOPs; values and gradients are those of recorded cases."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe import modules
from stmoe.analysis import flops
from stmoe.core import contract

D = 8
INNER = dict(name='moe', executor='einsum', router=dict(name='smoe', num_experts=4), experts=dict(
    name='mlp', d_ff=4, init_scale=1.0))
X = jax.random.normal(jax.random.key(0), (2, 5, D))
CTX = contract.Context(**contract.numbered(jnp.ones((2, 5), bool)), step=0, tokens=jnp.float32(10))


def build(**fields):
  recipe = lookup.recipe('layer', dict(dict(name='chain_of_experts', inner=INNER), **fields))
  return recipe(D, rngs=nnx.Rngs(0))


@jax.jit
def call(layer, x):
  y, aux, _ = layer(x, CTX, {})
  return y, {name: one.load for name, one in aux.items()}


@pytest.mark.slow
def test_a_chain_is_its_turns_one_after_the_other():
  layer, n = build(iterations=3), build().norm(X)
  turns = dict(layer.turns())
  assert list(turns) == ['inner', 'turn_2', 'turn_3'] == list(layer.reports)
  v = n
  for one in turns.values():
    v = one(v, CTX, {})[0] + v
  y, loads = call(layer, X)
  np.testing.assert_allclose(X + y, v, rtol=1e-5, atol=1e-5)          # the block's sum is v_C: no skip
  assert all(load.sum() == 2 * 10 for load in loads.values()) and len(loads) == 3
  np.testing.assert_allclose(call(build(iterations=3, outer_residual=True), X)[0], v, rtol=1e-5, atol=1e-5)
  gates = [modules.sparse(one)[0].router.w[...] for one in turns.values()]
  assert (gates[0] != gates[1]).any() and (gates[1] != gates[2]).any()


def test_residuals_and_gates():
  first = lambda v: build().inner(v, CTX, {})[0]
  n = build().norm(X)
  for residual, expected in (('none', first(n)), ('initial', first(n) + n), ('previous', first(n) + n)):
    y = call(build(iterations=1, inner_residual=residual, outer_residual=True), X)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  initial, previous = (call(build(inner_residual=name), X)[0] for name in ('initial', 'previous'))
  assert jnp.abs(initial - previous).max() > 1e-3
  one = build(each_gate=False)
  assert len(modules.sparse(one)) == 1 and len(modules.sparse(build())) == 2
  routers = [modules.sparse(layer)[0].router.w[...] for _, layer in one.turns()]
  np.testing.assert_array_equal(*routers)


def test_rematerialised_turns_have_the_same_gradient():
  grad = lambda layer: jax.jit(jax.grad(lambda layer: jnp.sum(jnp.sin(layer(X, CTX, {})[0]))))(layer)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
               jax.tree.leaves(grad(build())), jax.tree.leaves(grad(build(remat=True))))


def test_every_turn_is_counted():
  """Experts and the shared one are passed C times, each gate once; of parameters there is one pool."""
  of = lambda arg: experiment.load(f'chain_of_experts/sizes:{arg}')[0]
  chain, plain = of('choices=8'), of('choices=8,iterations=1')
  figures = [flops.active_per_token(cfg)['forward'] for cfg in (chain, plain)]
  size = chain.blocks.m.inner
  expert = 2 * 3 * chain.model.d_model * size.d_ff
  gate = 2 * chain.model.d_model * size.inner.router.num_experts
  # 2 x (3 routed + 1 shared) against 7 routed + 1 shared, and a gate more, in each of four layers.
  assert figures[0] - figures[1] == chain.model.layers[0][1] * gate
  assert figures[1] > chain.model.layers[0][1] * 8 * expert
  total = [flops.parameters(cfg)['total'] for cfg in (chain, plain)]
  assert total[0] - total[1] == chain.model.layers[0][1] * gate / 2


@pytest.mark.parametrize('fields, says', [
    (dict(inner=dict(name='dense', d_ff=4)), "dense.py has 0 routers, and a turn has one; nearest"),
    (dict(each_gate=False, inner=INNER | dict(router=dict(name='loss_free_balancing', num_experts=4))),
     'each_gate=False, but stmoe/routers/loss_free_balancing.py keeps a state')])
def test_mistakes(fields, says):
  with pytest.raises(errors.UserError, match=says):
    build(**fields)


def test_choices_that_iterations_do_not_divide():
  with pytest.raises(errors.UserError, match='choices=8 with iterations=3: .*nearest: choices=9'):
    experiment.load('chain_of_experts/sizes:iterations=3')
