"""Checks of SMILE: the bi-level layer by its formula, in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import assignment
from stmoe.core.execute import einsum
from stmoe.routers import smile


def bilevel_layer(case):
  with jax.enable_x64(True):
    _bilevel_layer(case)


class Experts:
  """E experts relu(x W1) W2, W1 f64[n,m,D,H] and W2 f64[n,m,H,D]."""

  def __init__(self, w1, w2):
    self.w1, self.w2 = (w.reshape(-1, *w.shape[2:]) for w in (w1, w2))

  def __call__(self, rows, key=None):
    return rows.linear(self.w1).map(jax.nn.relu).linear(self.w2)


def _bilevel_layer(case):
  c = case.config
  nodes, tokens = c['nodes'], c['T']
  shared = case.option('intra_shared', {True: True, False: False}, True)
  mask = np.ones((1, tokens), bool)
  places = [tokens if c.get(name) is None else c[name] for name in ('node_capacity', 'expert_capacity')]
  # One second router of all nodes is [D,m], those of all nodes [n,D,m]; ours are side by side.
  side = lambda w: w if shared else w.swapaxes(0, 1).reshape(w.shape[1], -1)

  def run(x, inter, intra, w1, w2):
    logits = smile.product(x[None] @ inter, x[None] @ side(intra), nodes * c['local'])
    a, aux = smile.smile(logits, mask, nodes, *places)
    y = einsum.execute(x[None], a, Experts(w1, w2))[0]
    balance = c['alpha'] * aux.losses['node_balance'] + c['beta'] * aux.losses['local_balance']
    return jnp.sum(y * case['cotangent']) + balance, (y, balance, a, logits[0])

  names = ('x', 'W_inter', 'W_intra', 'W1', 'W2')
  grads, (y, balance, a, logits) = jax.jit(jax.grad(run, argnums=tuple(range(5)), has_aux=True))(
      *(jnp.asarray(case[name]) for name in names))

  @jax.jit
  def shares(logits):
    both = logits.reshape(tokens, nodes, -1)
    # A dropped token is no more of an expert: where it went is asked of the edges that nothing drops.
    everywhere = smile.smile(logits[None], mask, nodes, tokens, tokens)[0].expert[0]
    return (jax.nn.softmax(jax.nn.logsumexp(both, axis=-1)), jax.nn.softmax(both), jax.nn.softmax(logits),
            everywhere)
  p, q, flat, everywhere = map(np.asarray, shares(logits))
  case.assert_close('p', p)
  node, local = everywhere // c['local'], everywhere % c['local']
  case.assert_close('node', node), case.assert_close('local', local)
  case.assert_close('q', q[np.arange(tokens), node])
  if 'flat_prob' in case:
    case.assert_close('flat_prob', flat)
  case.assert_close('kept', np.asarray(jax.jit(assignment.live)(a)[0], np.int8))
  case.assert_close('y', y)
  case.assert_close('balance', balance[None])
  for name, grad in zip(names, grads):
    case.assert_close(f'grad_{name}', grad)
