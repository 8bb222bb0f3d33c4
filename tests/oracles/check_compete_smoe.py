"""Checks of CompeteSMoE: competing and ordinary steps of both codes, and the schedule of given draws."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import models_libmoe
import numpy as np

from stmoe.experts import mlp
from stmoe.layers import compete_smoe as layers
from stmoe.routers import compete_smoe


def competition_step(case):
  c = case.config
  taught = case.option('hybrid', {True: 'hybrid', False: 'all'})
  coefficients = dict(distillation=c['router_loss_coef'], diversity=c['diversity_loss_coef'],
                      competition_balance=c['bal_comp_loss_coef'])
  grads, y, aux = _run(case, 'compete', coefficients, taught=taught, theta=c['router_theta'],
                       sigmoid=case.option('norm_sigmoid', {True: True, False: False}, False))
  _router(case)
  _affinity(case, c.get('norm_sigmoid', False))
  case.assert_close('output', y)
  for ours, theirs in (('distillation', 'router_loss'), ('diversity', 'diversity_loss'),
                       ('competition_balance', 'balance_loss')):
    case.assert_close(theirs, aux.losses[ours])
  case.assert_close('aux_loss', sum(coefficients[name] * aux.losses[name] for name in coefficients))
  _gradients(case, grads, dict(grad_w2='wo'))


def router_step(case):
  c = case.config
  for name, known in (('hybrid', (True, False)), ('norm_sigmoid', (True, False))):
    case.option(name, dict.fromkeys(known), False)                   # of competing steps only
  coefficients = dict(balance=c['balance_loss_coef'], z=c['router_z_loss_coef'])
  grads, y, aux = _run(case, 'route', coefficients)
  _router(case)
  case.assert_close('output', y)
  case.assert_close('balance_loss', aux.losses['balance'])
  case.assert_close('z_loss', aux.losses['z'])
  case.assert_close('aux_loss', sum(coefficients[name] * aux.losses[name] for name in coefficients))
  assert not any(aux.losses[name] for name in layers.LOSSES)
  _gradients(case, grads, dict(grad_w2='wo'))


def lm_competition_step(case):
  c = case.config
  taught = case.option('router_loss_mode', dict(
      hybrid='hybrid', tribrid='tribrid', in_topk='winners', plain='all', mse='all', all='all', normal='all'))
  half = c['balance_loss_coef_comp'] / 2
  parts = dict(diversity_reg=(half, 'diversity'), balance_reg=(half, 'competition_entropy'),
               router_reg=(c['router_loss_coef'], 'distillation'))
  coefficients = {name: weight for weight, name in parts.values()}
  grads, y, aux = _run(case, 'compete', coefficients, taught=taught, theta=c['router_theta'])
  _router(case)
  _affinity(case, False)
  case.assert_close('output', y)
  for theirs, (weight, name) in parts.items():
    case.assert_close(theirs, weight * aux.losses[name])
  _gradients(case, grads, dict(grad_keys='wi', grad_values='wo'))


def schedule(case):
  c = case.config
  assert c['first_step'] == int(c['warm_up'] * c['total_steps'])
  assert case['uniform'].shape == (c['layers'], c['total_steps'] - c['first_step'])
  made = compete_smoe.schedule(case['uniform'], c['rate_flip'], c['max_compete_in_iter'])
  case.assert_close('competes', made)
  router = compete_smoe.CompeteSMoE(4, num_experts=2, total_steps=c['total_steps'], num_layers=c['layers'],
                                    rate=c['rate_flip'], warm_up=c['warm_up'],
                                    most=c['max_compete_in_iter'], rngs=nnx.Rngs(0))
  assert router.first == c['first_step']


def _layer(case, **fields):
  c, bank = case.config, models_libmoe.bank(case)
  router = functools.partial(compete_smoe.CompeteSMoE, num_experts=c['E'], k=c['k'])
  experts = functools.partial(mlp.Mlp, d_ff=c['F'], activation=bank.activation, use_bias=bank.bi is not None)
  layer = layers.CompeteSMoE(c['D'], router=router, experts=experts, executor='einsum', rngs=nnx.Rngs(0),
                             **fields)
  layer.experts = bank
  layer.router.w[...] = jnp.asarray(case['router'].T)
  return layer


def _run(case, step, coefficients, **fields):
  """(gradients of (layer, x), y, aux) of one kind of step, `compete` or `route`."""
  layer, ctx = _layer(case, **fields), models_hf.context(np.zeros(case['x'].shape[:2], np.int32))

  def value(layer, x):
    y, aux = getattr(layer, step)(x, ctx.replace(train=True))
    loss = sum(weight * aux.losses[name] for name, weight in coefficients.items())
    return jnp.sum(y * case['cotangent']) + loss, (y, aux)

  grads, (y, aux) = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True))(layer, jnp.asarray(case['x']))
  return grads, y, aux


def _gradients(case, grads, arrays):
  layer, dx = grads
  case.assert_close('grad_x', dx)
  case.assert_close('grad_router', layer.router.w[...].T)
  for theirs, ours in arrays.items():
    grad = getattr(layer.experts, ours)[...]
    case.assert_close(theirs, grad if 'keys' in case else grad.swapaxes(1, 2))


def _router(case):
  """What the router decides, by what is recorded of it."""
  k, x = case.config['k'], jnp.asarray(case['x'])
  logits = compete_smoe.gate.logits(x, jnp.asarray(case['router'].T))
  probs = jax.nn.softmax(logits)
  case.assert_close('router_probs', probs)
  models_libmoe.same_experts(case, probs, k, 'router_selected')
  given = models_libmoe.recorded(case, 'router_selected')
  a, _ = compete_smoe.compete_smoe(logits, jnp.ones(x.shape[:2], bool), k, choose=given)
  if 'router_logits' in case:
    case.assert_close('router_logits', logits)
    case.assert_close('router_weights', models_libmoe.by_choice(a, k))


def _affinity(case, sigmoid):
  """How strongly experts answer, and who wins."""
  c, x = case.config, jnp.asarray(case['x'])
  rows = jnp.broadcast_to(x.reshape(1, -1, c['D']), (c['E'], c['B'] * c['T'], c['D']))
  outputs = models_libmoe.bank(case)(layers.layouts.Buckets(rows)).x
  strength = layers.affinity(outputs.reshape(c['E'], c['B'], c['T'], -1))
  case.assert_close('affinity', strength)
  case.assert_close('affinity_probs', jax.nn.softmax(strength))
  models_libmoe.same_experts(case, strength, c['k'], 'affinity_selected')
  given = models_libmoe.recorded(case, 'affinity_selected')
  weights, _ = layers.competition(outputs.reshape(c['E'], c['B'], c['T'], -1), strength,
                                  jnp.ones(x.shape[:2], bool), c['k'], means=(1, 0, 0), sigmoid=sigmoid,
                                  choose=given)
  of_winners = np.take_along_axis(np.asarray(weights), case['affinity_selected'], -1)
  case.assert_close('affinity_weights', of_winners)
