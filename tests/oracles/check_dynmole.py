"""Checks of DynMoLE: routing by entropy, the sum of adapters beside a matrix, the loss."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe.core import assignment
from stmoe.layers import dynmole as layers
from stmoe.routers import dynmole


def layer_and_loss(case):
  c, x = case.config, jnp.asarray(case['x'])
  routing = _routing(case)
  built = _built(case)
  w = jnp.asarray(case['base'].T)
  everything = jnp.ones(x.shape[:2], bool)

  @jax.jit
  def routed(router, x):
    logits = router.logits(x, None)
    a, _ = dynmole.dynmole(logits, everything, **routing)
    probs = jax.nn.softmax(logits)
    entropy = dynmole.entropy(probs, routing['q'], routing['kind'], routing['epsilon'])
    return probs, entropy, assignment.masks(a)[1].sum(-1)

  with jax.default_matmul_precision('highest'):
    probs, entropy, weights = routed(built.router, x)
    case.assert_close('prob', probs), case.assert_close('entropy', entropy)
    case.assert_close('weights', weights)
    np.testing.assert_array_equal(np.asarray(weights) > 0, case['weights'] > 0)
    _layer(case, built, x, w)
    _loss(case, built, x, routing)
  assert c['D'] == built.d_model


def _layer(case, built, x, w):
  ctx = models_hf.context(jnp.zeros(x.shape[:2], jnp.int32))

  @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
  def run(built, x):
    y = x @ w + built(x, ctx, {})[0]
    return jnp.sum(y * case['cotangent']), y
  (grads, dx), y = jax.jit(run)(built, x)
  case.assert_close('y', y), case.assert_close('grad_x', dx)
  case.assert_close('grad_gate', grads.router.w[...].T)
  low = grads.experts.low
  case.assert_close('grad_A', low.a[...].swapaxes(-1, -2))
  case.assert_close('grad_B', low.b[...].swapaxes(-1, -2))


def _loss(case, built, x, routing):
  c = case.config
  everything = jnp.ones(x.shape[:2], bool)
  mask = jnp.asarray(case['attention_mask'] > 0) if c['masked'] else everything
  if not c['masked']:
    assert 'attention_mask' not in case or case['attention_mask'].size

  def loss(w):
    # The released entropy loss is of all positions, its balance loss of the real ones.
    logits = jnp.einsum('gsd,de->gse', x, w)
    of_all, of_real = (dynmole.dynmole(logits, m, **routing)[1].losses for m in (everything, mask))
    return c['coef_entropy'] * of_all['entropy'] + c['coef_balance'] * of_real['balance']
  value, grad = jax.jit(jax.value_and_grad(loss))(built.router.w[...])
  case.assert_close('loss', value[None]), case.assert_close('grad_loss_gate', grad.T)


def _routing(case):
  c = case.config
  kind = case.option('entropy', {name: name for name in ('tsallis', 'renyi')}, 'tsallis')
  # At index 0 the threshold is off there.
  threshold = c['entropy_threshold'] if c['entropy_index'] > 0 else 1.0
  return dict(p=c['top_p'], keep=c['keep_top_k'], threshold=threshold, q=c['entropy_index'], kind=kind,
              epsilon=c['entropy_eps'])


def _built(case):
  """The mixture beside the base matrix, with the case's numbers."""
  c, routing = case.config, _routing(case)
  router = lookup.recipe('router', dict(name='dynmole', num_experts=c['E']) | {
      name: value for name, value in routing.items() if name != 'epsilon'})
  w = nnx.Param(jnp.asarray(case['base'].T))
  built = layers.Mixture(w, router=router, executor='blocks', group_size=None, rank=c['r'],
                         scale=c['alpha'] / c['r'], rngs=nnx.Rngs(0))
  built.router.epsilon = routing['epsilon']
  for variable, value in ((built.router.w, case['gate'].T), (built.experts.low.a, case['A'].swapaxes(-1, -2)),
                          (built.experts.low.b, case['B'].swapaxes(-1, -2))):
    assert variable.shape == value.shape
    variable[...] = jnp.asarray(value)
  return built
