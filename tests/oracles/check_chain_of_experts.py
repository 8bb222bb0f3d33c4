"""Checks of Chain of Experts: one layer of C turns, its states, choices, balance losses and gradients."""

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe import modules
from stmoe.core import assignment

ALPHA = 0.001                          # the file's losses are multiplied by it


def layer(case):
  c = case.config
  chain = _layer(case)
  ctx = models_hf.context(jnp.zeros((c['B'], c['S']), jnp.int32))
  training = case.option('training', {True: True, False: False})

  def loss(chain, x0):
    v, aux, _ = chain.iterate(x0, ctx, {})
    balance = jnp.stack([ALPHA * one.losses['balance'] for one in aux.values()])
    v = v + case['residual'] if c['outer_residual'] else v
    upstream = case['upstream'] if training else 0
    return jnp.sum(v * upstream) + jnp.sum(balance), (v, balance)

  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  (grads, dx), (out, balance) = run(chain, jnp.asarray(case['x0']))
  case.option('outer_residual', {True: None, False: None})
  if not c['outer_residual']:
    case.ignore('residual', 'it is added to nothing')
  case.assert_close('out', out)
  _turns(case, chain, ctx)
  if training:
    case.assert_close('grad_x0', dx), case.assert_close('aux_losses', balance)
    for turn, router in enumerate(_routers(grads)):
      name, together = f'grad_gate_{turn}', _together(case)
      rtol, atol = case.limits(name)
      np.testing.assert_allclose(together(np.asarray(router.w[...])), together(case[name].T), rtol=rtol,
                                 atol=atol)


def _layer(case):
  """The chain with the weights of `case`."""
  c = case.config
  each = case.option('use_igate', {True: True, False: False})
  inner_residual = case.option('inner_residual', {True: 'previous', False: 'none'})
  # The reference divides by the sum or multiplies by the factor, ours may do both.
  normalize = case.option('norm_topk_prob', {True: True, False: False}) and c['k'] > 1
  scope = case.option('seq_aux', {True: 'sequence', False: 'group'})
  router = dict(name='deepseek_moe', num_experts=c['E'], k=c['k'], normalize_gates=normalize, scope=scope,
                route_scale=1.0 if normalize else c['routed_scaling_factor'])
  # Over sequences a loss counts in each, else over the batch.
  inner = dict(name='moe', executor='einsum', group_size=c['B'] * c['S'], router=router,
               experts=dict(name='glu', d_ff=c['F'], activation='silu'))
  if c['n_shared_experts']:
    inner = dict(name='shared', d_ff=c['F'], num_shared=c['n_shared_experts'], inner=inner)
  chain = lookup.recipe('layer', dict(name='chain_of_experts', iterations=c['C'], each_gate=each, inner=inner,
                                      inner_residual=inner_residual))(c['D'], rngs=nnx.Rngs(0))
  for turn, own in enumerate(_routers(chain)):
    _set(own.w, case[f'w_gate_{turn}'].T)
  sparse = modules.sparse(chain.inner)[0]
  for ours, theirs in (('wi', 'silu'), ('wg', 'up'), ('wo', 'down')):
    _set(getattr(sparse.experts, ours), case[f'w_{theirs}'].swapaxes(1, 2))
    if c['n_shared_experts']:
      _set(getattr(chain.inner.shared, ours), case[f'sh_{theirs}'].T)
  return chain


def _together(case):
  """The function of arrays [.,E] that adds experts 0 and 1 where these are the same: either may win."""
  if case.option('tied_gate_rows', {True: True, False: False}, False):
    return lambda w: np.concatenate([w[:, :1] + w[:, 1:2], w[:, 2:]], axis=1)
  return lambda w: w


def _routers(chain):
  """The routers of the turns that have one of their own."""
  first = modules.sparse(chain.inner)[0].router
  others = [getattr(chain, name).router for name in chain.reports[1:]]
  return [first, *(router for router in others if router is not None)]


def _turns(case, chain, ctx):
  """Compares the state after every turn, and what a token chose in it."""
  c, v = case.config, jnp.asarray(case['x0'])
  group, together = lambda a: a.reshape(1, -1, *a.shape[2:]), _together(case)
  route = jax.jit(lambda one, v: modules.sparse(one)[0].router(group(v), ctx.each(group), {}).assignment)
  for turn, (_, one) in enumerate(chain.turns()):
    a = route(one, v)
    weights = np.asarray(assignment.masks(a)[1].sum(-1)[0])          # [B*S, E]
    expected = np.zeros_like(weights)
    np.put_along_axis(expected, case[f'topk_i_{turn}'], case[f'topk_w_{turn}'], axis=1)
    weights, expected = together(weights), together(expected)
    np.testing.assert_array_equal(weights > 0, expected > 0)
    rtol, atol = case.limits(f'topk_w_{turn}')
    np.testing.assert_allclose(weights, expected, rtol=rtol, atol=atol)
    y = jax.jit(lambda one, v: one(v, ctx, {})[0])(one, v)
    v = y + v if c['inner_residual'] else y
    case.assert_close(f'x_{turn + 1}', v)


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable[...] = jnp.asarray(value)
