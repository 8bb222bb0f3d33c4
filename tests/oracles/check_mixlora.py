"""Checks of MixLoRA: a layer of adapters beside a dense network, and the losses of its routers."""

import functools

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe.core import assignment
from stmoe.core import gate
from stmoe.routers import mixlora
from stmoe.routers import top_p_routing

# Names of the base's matrices and biases -> ours.
BASES = {'llama': dict(gate_proj='wi', up_proj='wg', down_proj='wo'), 'phi': dict(fc1='wi', fc2='wo')}


def layer(case):
  base, built = case.option('base', BASES), _built(case)
  x = jnp.asarray(case['x'])
  _set(built.router.w, case['gate'].T)
  for theirs, ours in base.items():
    _set(getattr(built, ours), case[f'base.{theirs}.weight'].T)
    if f'base.{theirs}.bias' in case:
      _set(getattr(built, 'b' + ours[1:]), case[f'base.{theirs}.bias'])
  for theirs, ours in _targets(case).items():
    part = getattr(built.experts, ours)
    _set(part.a, case[f'A.{theirs}'].swapaxes(-1, -2)), _set(part.b, case[f'B.{theirs}'].swapaxes(-1, -2))
    if part.magnitude is not None:
      _set(part.magnitude, case[f'magnitude.{theirs}'])
  with jax.default_matmul_precision('highest'):
    _compare(case, built, x)


def _compare(case, built, x):
  ctx = models_hf.context(jnp.zeros(x.shape[:2], jnp.int32))

  @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
  def run(built, x):
    y, _, _ = built(x, ctx, {})
    return jnp.sum(y * case['cotangent']), y
  (grads, dx), y = jax.jit(run)(built, x)

  @jax.jit
  def routed(x, w):
    rows = x.reshape(1, -1, x.shape[-1])
    logits = gate.logits(rows, w)
    a, _ = mixlora.mixlora(logits, jnp.ones(rows.shape[:2], bool), case.config['k'])
    return logits[0], assignment.masks(a)[1].sum(-1)[0]
  logits, combine = routed(x, built.router.w[...])
  case.assert_close('router_logits', logits)
  case.assert_close('combine', combine)
  case.assert_close('y', y), case.assert_close('grad_x', dx)
  case.assert_close('grad_gate', grads.router.w[...].T)
  for theirs, ours in _targets(case).items():
    part = getattr(grads.experts, ours)
    case.assert_close(f'grad_A.{theirs}', part.a[...].swapaxes(-1, -2))
    case.assert_close(f'grad_B.{theirs}', part.b[...].swapaxes(-1, -2))


def _targets(case):
  names = case.option('base', BASES)
  return {name: names[name] for name in case.config['targets'] if name in names}


def _built(case):
  c = case.config
  flag = {True: True, False: False}
  fields = dict(
      name='mixlora', d_ff=c['F'], gated='wg' in case.option('base', BASES).values(),
      use_bias=any(name.endswith('.bias') for name in case.names('base.')),
      activation=case.option('activation', activations.TORCH), targets='+'.join(_targets(case).values()),
      rank=c['r'], alpha=c['alpha'], rslora=case.option('rslora', flag, False),
      dora=case.option('dora', flag, False),
      router=dict(name='mixlora', num_experts=c['E'], k=c['k']))
  return lookup.recipe('layer', fields)(c['D'], rngs=nnx.Rngs(0))


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable[...] = jnp.asarray(value)


def balance_losses(case):
  c, logits = case.config, jnp.asarray(case['router_logits'])[None]  # [1, L B T, E]: one group of all layers
  real = np.tile(case['attention_mask'].reshape(-1) > 0, c['layers'])[None]
  mask = jnp.asarray(real if c['masked'] else np.ones_like(real))
  pooled = jax.value_and_grad(lambda z: mixlora.mixlora(z, mask, c['k'])[1].losses['balance'])
  loss, grad = pooled(logits)
  case.assert_close('mixtral_loss', loss[None]), case.assert_close('grad_mixtral', grad[0])
  # The dynamic loss counts padding there as tokens.
  dynamic = jax.value_and_grad(lambda z: _dynamic(z, jnp.ones_like(mask), c['top_p']), has_aux=True)
  (loss, combine), grad = dynamic(logits)
  case.assert_close('dynamic_combine', combine[0])
  case.assert_close('dynamic_loss', loss[None]), case.assert_close('grad_dynamic', grad[0])


def _dynamic(logits, mask, p):
  """(loss, weights f32[1,N,E]) of top-p."""
  most = top_p_routing.most_experts(p, logits.shape[-1])
  a, aux = top_p_routing.top_p_routing(logits, mask, p, most)
  return aux.losses['balance'], assignment.masks(a)[1].sum(-1)
