"""Virtual experts through the sparse layer: what they add, what is reported, and on what executors."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stmoe.experts.virtual
from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.core import metrics
from stmoe.core.transport import rows
from tests.routers import generic

B, T, D, E = 4, 8, 6, 4
VIRTUAL = tuple(lookup.available('virtual'))
EXECUTORS = lookup.available('executor')
ROUTERS = [name for name in lookup.available('router') if 'num_virtual' in lookup.fields('router', name)]


def layer(router='st_moe', virtual=VIRTUAL, executor='gather', experts=E, **fields):
  router = dict(name=router, num_experts=experts) | generic.fields(router) | fields
  bank = dict(name='mlp', d_ff=10, init_scale=1.0)
  make = lookup.recipe('layer', dict(name='moe', router=router, experts=bank, executor=executor,
                                     virtual=virtual))
  made = make(D, rngs=nnx.Rngs(0))
  made.router.w[...] = jax.random.normal(jax.random.key(2), made.router.w.shape)
  return made


def context(mask=None, **fields):
  mask = jnp.ones((B, T), bool) if mask is None else mask
  whole = jnp.broadcast_to(jnp.arange(T), (B, T))
  return contract.Context(mask=mask, ids=whole, positions=whole, segments=mask.astype(jnp.int32),
                          step=jnp.int32(0), tokens=jnp.float32(mask.sum()), **fields)


X = jax.random.normal(jax.random.key(0), (B, T, D))
MASK = jnp.arange(T) < jnp.array([[8], [5], [8], [7]])


def below(module, x):
  """What layers below may have left."""
  return jax.tree.map(jnp.ones_like, modules.init_carry(module, x))


@jax.jit
def gradients(module, x, ctx):
  """(y, aux, gradients to the layer and x)."""
  def weighed(module, x):
    y, aux, _ = module(x, ctx, below(module, x))
    return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)) + sum(aux.losses.values()), (y, aux)
  (_, (y, aux)), grads = jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True)(module, x)
  return y, aux, grads


@jax.jit
def apply(module, x, ctx):
  return module(x, ctx, below(module, x))[:2]


def assert_same(got, want, tolerance=2e-5):
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1e-3, np.abs(w).max()))


def on(executor, router='st_moe', **fields):
  module = layer(router, executor=executor)
  return gradients(module, X, context(MASK, **fields))


reference = functools.cache(functools.partial(on, 'einsum'))


@pytest.mark.parametrize('executor', [
    pytest.param(name, marks=[pytest.mark.slow] * (name.startswith('hops') or name == 'ragged'))
    for name in EXECUTORS if name != 'einsum'])
def test_every_executor(executor):
  assert_same(on(executor), reference())


@pytest.mark.parametrize('router', [
    pytest.param(name, marks=[pytest.mark.slow] * (i > 1)) for i, name in enumerate(ROUTERS)])
def test_every_router_that_knows_them(router):
  y, aux, grads = got = on('gather', router, train=True, key=jax.random.key(0))
  assert_same(got, on('einsum', router, train=True, key=jax.random.key(0)))
  assert aux.load.shape == (E + len(VIRTUAL),) and aux.load[E:].sum() > 0
  assert aux.metrics['virtual_frac'] == aux.load[E:].sum() / aux.load.sum()
  for gradient in jax.tree.leaves((nnx.state(grads[0], nnx.Param), grads[1])):
    assert jnp.abs(gradient).max() > 1e-5


@pytest.mark.slow
def test_on_several_devices_and_in_microbatches():
  whole = layer(executor='all_to_all_dropless')
  with axes.use(axes.make_mesh(2, 2, 2)):
    y, aux, grads = gradients(whole, X, context(MASK))
  assert_same((y, aux, grads), reference())
  # Two microbatches: the divisor of losses is the batch's over their number, so that means and sums are its.
  pick = lambda i: slice(i * B // 2, (i + 1) * B // 2)
  halves = []
  for i in range(2):
    ctx = context(MASK)
    cut = {name: getattr(ctx, name)[pick(i)] for name in ('mask', 'ids', 'positions', 'segments')}
    halves.append(gradients(layer(), X[pick(i)], ctx.replace(**cut, tokens=ctx.tokens / 2))[1])
  want = reference()[1]
  np.testing.assert_array_equal(halves[0].load + halves[1].load, want.load)
  numbers = lambda aux: np.array([*aux.losses.values(), aux.metrics['left_behind']])
  np.testing.assert_allclose((numbers(halves[0]) + numbers(halves[1])) / 2, numbers(want), rtol=1e-6)


def test_alone_as_in_decoding():
  module = layer(capacity_factor=(None, None))
  y, alone = apply(module, X, context())[0], apply(module, X, context(alone=True))[0]
  np.testing.assert_allclose(alone, y, rtol=1e-4, atol=1e-5)


def test_a_copy_of_weight_one_is_the_input():
  module = layer(virtual=('copy',), k=1)
  module.router.w[...] = jnp.zeros((D, E + 1)).at[:, E].set(1e4)     # all tokens, with probability 1
  y, aux = apply(module, jnp.abs(X), context(MASK))
  np.testing.assert_array_equal(y, jnp.where(MASK[..., None], jnp.abs(X), 0))
  assert aux.load.tolist() == [0, 0, 0, 0, float(MASK.sum())]
  assert aux.metrics['left_behind'] == aux.metrics['drop_frac'] == 0


def test_a_constant_expert_learns():
  module = layer(virtual=('constant',), k=1)
  module.router.w[...] = jnp.zeros((D, E + 1)).at[:, E].set(1e4)
  x, target = 0.1 * jnp.abs(X), jnp.arange(D, dtype=jnp.float32)

  @jax.jit
  def train(module):
    def step(module, _):
      loss, grads = jax.value_and_grad(lambda m: jnp.mean((m(x, context(), {})[0] - target) ** 2))(module)
      return jax.tree.map(lambda w, g: w - 0.5 * g, module, grads), loss
    return jax.lax.scan(step, module, length=100)
  after, losses = train(module)
  assert losses[0] > 5 and losses[-1] < 0.05                         # x is small: only v can be the target
  assert jnp.abs(after.virtual[0].v[...] - module.virtual[0].v[...]).max() > 0.5


def test_tokens_of_a_virtual_expert_are_not_left_behind():
  # Group of 4: to expert 0 (two, one slot), to a virtual expert, nowhere.
  edges = assignment.from_choices(jnp.array([[[0], [0], [1], [2]]]), jnp.ones((1, 4, 1)), 1, num_virtual=1)
  a, mask = assignment.cap(edges, 1), jnp.ones((1, 4), bool)
  assert metrics.left_behind(a, mask) == 0.5                         # the second token, and the last
  assert metrics.load(edges).tolist() == [2, 1]
  assert round(float(metrics.drop_frac(edges, a)), 4) == 0.3333
  assert metrics.experts_per_token(a).tolist() == [[1, 0, 1, 0]]


def test_capacity_may_differ_between_experts():
  # MoE++ (arXiv:2410.07348): experts have more room than virtual ones have, or less.
  expert = jnp.array([[[0], [0], [1], [1], [2], [2]]])
  edges = assignment.from_choices(expert, jnp.ones((1, 6, 1)), 2, num_virtual=1)
  a = assignment.cap(edges, (2, 1, 1))
  assert a.expert.tolist() == [[0, 0, 1, 3, 2, 3]] and a.slot.tolist() == [[0, 1, 0, 2, 2, 2]]
  assert a.capacity == 2 and rows.virtual_gates(a).tolist() == [[[0], [0], [0], [0], [1], [0]]]
  assert round(float(metrics.drop_frac(edges, a)), 4) == 0.3333
  with pytest.raises(ValueError, match='2 capacities for 3 experts'):
    assignment.cap(edges, (2, 1))


def test_a_router_that_wraps_another():
  router = dict(name='trace', inner=dict(name='st_moe', num_experts=E, k=2, capacity_factor=(None, None)))
  bank = dict(name='mlp', d_ff=10)
  made = lookup.recipe('layer', dict(name='moe', router=router, experts=bank, virtual=VIRTUAL))(
      D, rngs=nnx.Rngs(0))
  assert apply(made, X, context())[1].load.shape == (E + len(VIRTUAL),)
  assert made.router.inner.num_virtual == len(VIRTUAL)


def test_routers_without_them_are_refused_in_one_line():
  with pytest.raises(errors.UserError, match='router hash knows no virtual experts, .* nearest: .*st_moe'):
    lookup.recipe('layer', dict(name='moe', router=dict(name='hash', num_experts=E, vocab_size=9),
                                experts=dict(name='mlp', d_ff=8), virtual=('zero',)))(D, rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match='num_virtual=2 of the router, but the layer has 1'):
    layer(virtual=('zero',), num_virtual=2)
  with pytest.raises(errors.UserError, match="no virtual is called 'zeros'; nearest: zero"):
    layer(virtual=('zeros',))


def test_a_virtual_expert_is_a_file(tmp_path, monkeypatch):
  (tmp_path / 'twice.py').write_text(
      'from flax import nnx\n\n\nclass Twice(nnx.Module):\n  def __init__(self, d_model, *, rngs):\n'
      '    pass\n\n  def __call__(self, x):\n    return 2 * x\n')
  monkeypatch.setattr(stmoe.experts.virtual, '__path__', [*stmoe.experts.virtual.__path__, str(tmp_path)])
  module = layer(virtual=('zero', 'twice'), k=1)
  module.router.w[...] = jnp.zeros((D, E + 2)).at[:, E + 1].set(1e4)
  np.testing.assert_array_equal(apply(module, jnp.abs(X), context())[0], 2 * jnp.abs(X))
