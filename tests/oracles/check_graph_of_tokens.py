"""Checks of Graph of Tokens: both means of probabilities over tokens, by our reading; in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.attention import graph_of_tokens as attention
from stmoe.core import choices
from stmoe.core import metrics
from stmoe.routers import graph_of_tokens as router


def joint_router(case):
  with jax.enable_x64(True):
    _joint_router(case)


def _joint_router(case):
  c = case.config
  number, experts = c['N'], c['E']
  causal = case.option('causal', {True: True, False: False})
  seen = jnp.ones((1, number, number), bool)
  seen = jnp.tril(seen) if causal else seen
  probs = lambda u, w: jax.nn.softmax((u @ w.T + case['b'])[None], axis=-1)
  u, w, w_s = (jnp.asarray(case[name]) for name in ('u', 'W', 'W_s'))

  def similar(u, w, w_s):
    weights = router.similarity(u[None], w_s, seen, c['tau'])
    return _weighed(case, router.mean(weights, probs(u, w))), weights

  def attended(u, w):
    # All rows of the sequence choose the head, in a causal case, too.
    weights, head = attention.graph(jnp.asarray(case['attention'])[None], jnp.asarray(
        case['value'].swapaxes(0, 1))[None], jnp.ones_like(seen), c['sigma'])
    return _weighed(case, router.mean(weights, probs(u, w))), (weights, head)

  grads, (p, weights) = jax.jit(jax.grad(_first(similar), argnums=(0, 1, 2), has_aux=True))(u, w, w_s)
  case.assert_close('p', probs(u, w)[0]), case.assert_close('similarity', weights[0])
  for name, grad in zip(('u', 'W', 'Ws'), grads):
    case.assert_close(f'grad_sim_{name}', grad)
  _compare(case, 'similarity', p)
  grads, (p, (weights, head)) = jax.jit(jax.grad(_first(attended), argnums=(0, 1), has_aux=True))(u, w)
  case.assert_close('reweighted', weights[0])
  assert np.all(head == case['head'])
  for name, grad in zip(('u', 'W'), grads):
    case.assert_close(f'grad_att_{name}', grad)
  _compare(case, 'attention', p)
  case.assert_close('entropy_plain', _entropies(probs(u, w)))
  assert experts == p.shape[-1] and c['heads'] == len(case['attention']) and c['head_width'] == (
      case['value'].shape[-1])


def _weighed(case, p):
  """(sum of p~ times the cotangent, p~)."""
  return jnp.sum(p[0] * case['cotangent']), p


def _first(run):
  """`run` as (loss, (p~, what else it made))."""
  def both(*args):
    (loss, p), more = run(*args)
    return loss, (p, more)
  return both


def _compare(case, name, p):
  """Compares p~ f64[1,N,E], its entropies, and the experts of a token, which are marked."""
  case.assert_close(f'p_{name}', p[0])
  case.assert_close(f'entropy_{name}', _entropies(p))
  chosen = jax.nn.one_hot(choices.top(p, case.config['k']), p.shape[-1]).sum(axis=2)[0]
  np.testing.assert_array_equal(chosen, case[f'top_{name}'])


def _entropies(p):
  """f64[N] of probabilities f64[1,N,E], token by token."""
  return jax.vmap(lambda one: metrics.entropy(one[None, None], jnp.ones((1, 1), bool)))(p[0])
