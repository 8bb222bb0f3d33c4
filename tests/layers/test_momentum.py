"""Momentum along depth: the recurrences by hand, the state between layers, and its gradient."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import lookup
from stmoe import modules
from stmoe import router_state as state
from stmoe.core import contract
from stmoe.core import losses
from stmoe.errors import UserError
from stmoe.layers import adam_momentum
from stmoe.layers import momentum
from stmoe.layers import residual
from stmoe.layers import robust_momentum

B, T, D = 2, 3, 4
# Sparse inner layers are in tests/models and tests/oracles; what is tested here does not depend on them.
DENSE = dict(name='dense', d_ff=5, activation='gelu', use_bias=True)
INNER = lookup.recipe('layer', DENSE)


def context(real=T, **fields):
  mask = jnp.broadcast_to(jnp.arange(T) < real, (B, T))
  ids = mask.astype(jnp.int32)
  return contract.Context(mask=mask, ids=ids, positions=ids, segments=ids, step=jnp.int32(0),
                          tokens=mask.sum().astype(jnp.float32), **fields)


def x(seed=1, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), (B, T, D), dtype)


@jax.jit
def call(layer, x, ctx, carry):
  return layer(x, ctx, carry)


def test_heavy_ball_by_hand():
  # 0.5 * 4 + 3 * 2 = 8
  assert momentum.momentum(4.0, 2.0, 0.5, 3.0) == 8.0


def test_adam_by_hand():
  # p = 0.9 * 1 + 0.1 * 2 = 1.1; v = 0.99 * 3 + 0.01 * 4 = 3.01
  p, v, u = adam_momentum.adam(1.0, 3.0, 2.0, 0.9, 0.99, 2.0)
  np.testing.assert_allclose((p, v, u), (1.1, 3.01, 2.2 / np.sqrt(3.01)), rtol=1e-6)
  # From zero, without bias correction, any large c steps by 0.1 / sqrt(0.001).
  u = adam_momentum.adam(jnp.zeros(2), jnp.zeros(2), jnp.array([5.0, -50.0]), 0.9, 0.999, 1.0)[2]
  np.testing.assert_allclose(u, [3.1623, -3.1623], rtol=1e-4)
  # The root is never of zero.
  assert jnp.isfinite(jax.grad(lambda c: adam_momentum.adam(0.0, 0.0, c, 0.9, 0.999, 1.0)[2])(0.0))


def test_robust_coefficients_by_hand():
  # kappa = 10, (1 - 0.8)^2 1.8 = 0.072, 0.8^3 = 0.512.
  np.testing.assert_allclose(robust_momentum.coefficients(1.0, 0.1, 0.8),
                             (0.72, 5.12 / 9, 0.512 / (9 * 0.072)), rtol=1e-6)


@pytest.mark.parametrize('rho', [1 - 10 ** -0.5, 0.8, 0.9])
def test_robust_momentum_converges_at_rate_rho(rho):
  """On a quadratic with curvatures between c and L the error falls by rho a step, whatever the curvature."""
  alpha, beta, eta = robust_momentum.coefficients(2.0, 0.2, rho)
  curvature = np.array([0.2, 0.5, 1.0, 2.0])
  at, d, errors = np.ones(4), np.zeros(4), []
  for _ in range(100):
    d = robust_momentum.robust(d, curvature * robust_momentum.ahead(at, d, eta), alpha, beta)
    at = at + d
    errors.append(np.abs(at).max())
  rate = (errors[99] / errors[49]) ** (1 / 50)
  assert rho - 0.05 < rate < rho + 0.02


@pytest.mark.parametrize('fields, message', [
    (dict(rho=0.95), r'rho=0.95 with smoothness / convexity = 10; .* = \[0.6838, 0.9000\]; nearest: 0.9000'),
    (dict(rho=0.5), 'nearest: 0.6838'),
    (dict(convexity=1.0), 'convexity=1.0 is not between 0 and smoothness=1.0; for example convexity=0.1'),
    (dict(convexity=-1.0), 'convexity=-1.0 is not between'),
])
def test_inadmissible_robust_coefficients(fields, message):
  with pytest.raises(UserError, match=message):
    robust_momentum.RobustMomentum(D, inner=INNER, rngs=nnx.Rngs(0), **fields)


def test_without_momentum_it_is_the_baseline_up_to_sign():
  layer = momentum.Momentum(D, inner=INNER, mu=0.0, gamma=1.0, rngs=nnx.Rngs(0))
  c, _, _ = call(layer.inner, x(), context(), {})
  y, _, carry = call(layer, x(), context(), {'momentum': x(9)})
  np.testing.assert_array_equal(y, -c)
  np.testing.assert_array_equal(carry['momentum'], c)                # nothing of the state before


def test_post_norm_without_momentum_is_the_residual_layer():
  ours = momentum.Momentum(D, inner=INNER, mu=0.0, gamma=-1.0, post_norm=True, rngs=nnx.Rngs(0))
  baseline = residual.Residual(D, inner=INNER, rngs=nnx.Rngs(0))
  baseline.inner = ours.inner
  y, _, _ = call(ours, x(), context(), modules.init_carry(ours, x()))
  np.testing.assert_allclose(call(baseline, x(), context(), {})[0], y, rtol=1e-6)
  np.testing.assert_allclose(y.mean(-1), np.zeros((B, T)), atol=1e-6)


LAYERS = 'ammrr'
KINDS = dict(a=('adam_momentum', dict(beta1=0.8, beta2=0.9, gamma1=0.5, mu=0.6, gamma2=1.5)),
             m=('momentum', dict(mu=0.6, gamma=1.5)),
             r=('robust_momentum', dict(smoothness=1.0, convexity=0.2, rho=0.7, normalize=False)))


def through_layers(layers, x, ctx):
  """Pre-norm blocks without norms: the layers' own states in the carry."""
  carry = functools.reduce(lambda carry, layer: carry | modules.init_carry(layer, x), layers, {})
  for layer in layers:
    y, _, carry = layer(x, ctx, carry)
    x = x + y
  return x


def by_hand(layers, x, ctx):
  """The same as sums over all experts' outputs so far, without a state that is passed on."""
  cs = []
  alpha, beta, eta = robust_momentum.coefficients(1.0, 0.2, 0.7)
  mixture = lambda layer, x: layer.inner(x, ctx, {})[0]
  for kind, layer in zip(LAYERS, layers):
    if kind == 'r':
      break
    cs.append(mixture(layer, x))
    if kind == 'a':
      x = x - 0.5 * 0.2 * cs[0] / jnp.sqrt(0.1 * cs[0] ** 2 + 1e-8)
    else:
      x = x - sum(1.5 * 0.6 ** (len(cs) - 1 - i) * c for i, c in enumerate(cs))
  before = x                                                         # x_t - x_{t-1} = 0
  for layer in layers[3:]:
    step = x - before
    before, x = x, x + beta * step - alpha * mixture(layer, x + eta * step)
  return x


def test_states_and_their_gradients_along_depth():
  """Every layer is taught through all later ones; the heavy-ball state knows the Adam layer's c."""
  layers = nnx.List([lookup.recipe('layer', dict(KINDS[k][1], name=KINDS[k][0], inner=DENSE))(
      D, rngs=nnx.Rngs(i)) for i, k in enumerate(LAYERS)])

  @functools.partial(jax.jit, static_argnums=0)
  def run(forward, layers, x):
    def loss(layers, x):
      y = forward(layers, x, context())
      return jnp.sum(jnp.cos(jnp.arange(y.size).reshape(y.shape)) * y), y
    (_, y), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(layers, x)
    return y, grads
  y, grads = run(through_layers, layers, x())
  expected, expected_grads = run(by_hand, layers, x())
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
  for (path, a), (_, b) in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves_with_path(expected_grads)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    assert jnp.abs(a).max() > 1e-3                                   # every layer learns


def test_robust_experts_see_a_normalised_y():
  layer = robust_momentum.RobustMomentum(D, inner=INNER, rngs=nnx.Rngs(0))
  d = x(5)
  y, _, carry = call(layer, 10 * x(), context(), {'robust_momentum': d})
  ahead = 10 * x() + layer.eta * d
  c, _, _ = call(layer.inner, ahead / jnp.sqrt(jnp.mean(ahead ** 2, -1, keepdims=True)), context(), {})
  np.testing.assert_allclose(y, layer.beta * d - layer.alpha * c, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(carry['robust_momentum'], y)


class Recurrent(nnx.Module):
  """An inner layer with memory across layers (how many it has passed) and across steps (a bias)."""

  def __init__(self, d_model, *, rngs):
    self.bias = state.RouterState(jnp.zeros(2))

  def init_carry(self, x):
    return {'passed': jnp.zeros(x.shape[:2])}

  def commit(self, aux):
    self.bias[...] += aux.load

  def __call__(self, x, ctx, carry):
    aux = contract.Aux(losses={}, load=jnp.ones(2), metrics={'of_inner': jnp.float32(3)})
    return x, aux, carry | {'passed': carry['passed'] + 1}


EVERY = [(momentum.Momentum, {'momentum'}), (adam_momentum.AdamMomentum, {'momentum', 'adam_p', 'adam_v'}),
         (robust_momentum.RobustMomentum, {'robust_momentum'}), (residual.Residual, set())]


@pytest.mark.parametrize('make, own', EVERY)
def test_inner_memory_and_foreign_states_pass_through(make, own):
  layer = make(D, inner=Recurrent, rngs=nnx.Rngs(0))
  carry = modules.init_carry(layer, x(dtype=jnp.bfloat16))
  assert set(carry) == own | {'passed'}
  assert {carry[name].dtype for name in own} <= {jnp.dtype('float32')}
  others = {'momentum', 'adam_p', 'adam_v', 'robust_momentum'} - own
  y, aux, after = call(layer, x(dtype=jnp.bfloat16), context(), carry | {name: x(7) for name in others})
  assert y.dtype == jnp.bfloat16 and {name: a.dtype for name, a in after.items()} == {
      name: jnp.float32 for name in own | others | {'passed'}}
  assert (after['passed'] == 1).all()
  for name in others:
    np.testing.assert_array_equal(after[name], x(7))
  for name in own:
    assert (after[name] != 0).any(), name
  assert set(aux.metrics) == {'of_inner'} | ({'momentum_norm'} if own else set())
  modules.commit(layer, aux)
  np.testing.assert_array_equal(layer.inner.bias[...], [1, 1])


def test_momentum_norm_is_of_real_tokens():
  layer = momentum.Momentum(D, inner=Recurrent, mu=0.0, gamma=2.0, rngs=nnx.Rngs(0))
  ctx, carry = context(real=2), modules.init_carry(layer, x())
  aux = call(layer, 3 * jnp.ones((B, T, D)).at[:, 2].set(100.0), ctx, carry)[1]
  np.testing.assert_allclose(aux.metrics['momentum_norm'], 6.0, rtol=1e-6)
  assert losses.token_mean(jnp.ones((B, T)), ctx.mask, ctx.tokens) == 1
  grad = jax.grad(lambda x: layer(x, ctx, carry)[1].metrics['momentum_norm'])(x())
  assert not grad.any()


def test_a_layer_that_reports_nothing_stays_so():
  layer = momentum.Momentum(D, inner=INNER, rngs=nnx.Rngs(0))
  y, aux, carry = call(layer, x(), context(), modules.init_carry(layer, x()))
  assert aux is None
  np.testing.assert_array_equal(y, -carry['momentum'])


@pytest.mark.parametrize('make, own', EVERY)
def test_dropout_is_of_the_mixture_and_in_training_only(make, own):
  layer = make(D, inner=Recurrent, dropout_rate=0.5, rngs=nnx.Rngs(0))
  once = lambda **fields: call(layer, 1 + jnp.abs(x()), context(**fields), modules.init_carry(layer, x()))
  key = jax.random.key(0)
  y, _, carry = once(key=key, train=True)
  plain, _, _ = once(key=key)
  np.testing.assert_array_equal(plain, once()[0])
  assert (y != plain).any()
  if own:                                                            # dropped before it enters the state
    name = 'robust_momentum' if 'robust_momentum' in own else 'momentum'
    assert 0.2 < (carry[name] == 0).mean() < 0.8
