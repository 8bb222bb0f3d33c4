"""Checks of MoFME: the router, weights from several passes, and blocks of modulated or whole experts."""

import functools

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe.attention import attention
from stmoe.core import assignment
from stmoe.parts import block as blocks
from stmoe.parts import norm
from stmoe.parts import visible
from stmoe.routers import mofme


def _dense(a):
  """f32[B,N,E]: the weights of an Assignment, 0 where a token has no edge to an expert."""
  groups = jnp.arange(a.token.shape[0])[:, None]
  weight = jnp.where(assignment.reaching(a), a.weight, 0)
  return jnp.zeros((len(groups), a.num_tokens, a.dead)).at[groups, a.token, a.expert].add(weight, mode='drop')


def router(case):
  x, w, b = (jnp.asarray(case[name]) for name in ('x', 'w', 'b'))
  mask, k = jnp.ones(x.shape[:2], bool), case.config['k'] or case.config['E']

  def weights(x, w):
    z = jnp.einsum('bnd,ed->bne', x, w, precision='highest') + b
    return _dense(mofme.mofme(z, mask, k)[0])
  found, back = jax.vjp(jax.jit(weights), x, w)
  case.assert_close('weights', found)
  dx, dw = back(jnp.asarray(case['upstream']))
  case.assert_close('grad_x', dx), case.assert_close('grad_w', dw)


def uncertainty_weights(case):
  c = case.config
  with jax.enable_x64(True):
    samples = jnp.asarray(case['samples'], jnp.float64)
    assert samples.shape[0] == c['T']
    case.assert_close('weights', mofme.uncertain(samples, c['eps_cov'], c['eps_norm']))
  # In float32 as models compute: to what the case allows.
  case.assert_close('weights', mofme.uncertain(jnp.asarray(case['samples']), c['eps_cov'], c['eps_norm']))
  # The mean and the covariance are the reference's own steps; ours come from the T x T products.
  mean = np.float64(case['samples']).mean(0)
  deviation = np.float64(case['samples']) - mean
  case.assert_close('mean', mean)
  case.assert_close('covariance', np.einsum('tbne,tbnf->bnef', deviation, deviation) / (c['T'] - 1))


def film_block_intended(case):
  _film(case, released=False)


def film_block_released(case):
  _film(case, released=True)


def _film(case, released):
  c = case.config
  depth = c.get('depth', 1)
  fields = dict(layer='mofme', d_ff=c['F'], activation=case.option('activation', activations.TORCH),
                epsilon=c['layer_norm_eps'], experts=dict(name='film'))
  make = _maker(case, fields, virtual=('activated',) * released)
  stack = [_filled(make(), {name: case[f'l{i}.{name}'] for name in _names(case, f'l{i}.')}, _FILM, released)
           for i in range(depth)]
  dx, (y, chosen), dlayers = _run(case, stack)
  case.assert_close('out', y), case.assert_close('grad_x', dx)
  # The released expert 0 is the activation, our last, virtual one.
  last_first = lambda w: jnp.roll(w, 1, axis=0) if released else w
  for i, a in enumerate(chosen):
    case.assert_close(f'l{i}.router_weights', jnp.roll(_dense(a), 1, -1) if released else _dense(a))
  first = dlayers[0].layer
  case.assert_close('grad_router_w0', last_first(first.router.w[...].T))
  dead = jnp.zeros((int(released), c['D'], c['D']))                  # the released last expert
  case.assert_close('grad_film_mul_w0', jnp.concatenate([first.experts.scale[...].swapaxes(1, 2), dead]))


def naive_moe_block(case):
  c = case.config
  experts = dict(name='residual', d_ff=c['F'], activation=case.option('activation', activations.TORCH))
  make = _maker(case, dict(layer='moe', experts=experts))
  y_x, (y, chosen), _ = _run(case, [_filled(make(), case.group(''), _NAIVE, False)])
  case.assert_close('out', y), case.assert_close('grad_x', y_x)
  case.assert_close('router_weights', _dense(chosen[0]))


def _maker(case, fields, virtual=()):
  """A function that makes a block of the reference's sizes."""
  c = case.config
  fields = fields | dict(router=dict(name='mofme', num_experts=c['E'] - len(virtual), k=c['k']),
                         executor='einsum') | (dict(virtual=virtual) if virtual else {})
  name = fields.pop('layer')
  make_norm = functools.partial(norm.LayerNorm, epsilon=c.get('layer_norm_eps', 1e-5))
  attend = functools.partial(attention.Attention, num_heads=c['heads'], head_dim=c['dim_head'], out_bias=True)
  layer = lookup.recipe('layer', dict(name=name) | fields)
  return lambda: blocks.Block(c['D'], layer=layer, attention=attend, norm=make_norm,
                              layer_norm=name == 'mofme', rngs=nnx.Rngs(0))


def _names(case, prefix):
  return [name.removeprefix(prefix) for name in case.names(prefix) if not name.endswith('router_weights')]


def _t(w):
  return w.swapaxes(-1, -2)


_COMMON = {'ln_attn_g': 'attention_norm.scale', 'ln_attn_b': 'attention_norm.bias',
           'attn_out_w': 'attention.wo', 'attn_out_b': 'attention.bo', 'router_w': 'layer.router.w',
           'router_b': 'layer.router.b'}
_FILM = _COMMON | {
    'ln_ff_g': 'layer.norm.scale', 'ln_ff_b': 'layer.norm.bias', 'base0_w': 'layer.p', 'base0_b': 'layer.bp',
    'base1_w': 'layer.q', 'base1_b': 'layer.bq', 'ad1_w': 'layer.adaptor.wi', 'ad1_b': 'layer.adaptor.bi',
    'ad2_w': 'layer.adaptor.wo', 'ad2_b': 'layer.adaptor.bo', 'film_mul_w': 'layer.experts.scale',
    'film_mul_b': 'layer.experts.scale_bias', 'film_add_w': 'layer.experts.shift',
    'film_add_b': 'layer.experts.shift_bias'}
_SUBLAYER = 'layer.experts.sublayers.0.'
_NAIVE = _COMMON | {'ln_g': f'{_SUBLAYER}scale', 'ln_b': f'{_SUBLAYER}bias', 'w1': f'{_SUBLAYER}wi',
                    'b1': f'{_SUBLAYER}bi', 'w2': f'{_SUBLAYER}wo', 'b2': f'{_SUBLAYER}bo'}
_TURNED = ('attn_out_w', 'router_w', 'base0_w', 'base1_w', 'ad1_w', 'ad2_w', 'film_mul_w', 'film_add_w', 'w1',
           'w2')                                                     # torch has [out,in]


def _filled(block, arrays, places, released):
  """`block` with the reference's arrays; a released block has its experts one place further."""
  q, k, v = np.split(arrays['qkv'], 3)
  if 'attn_out_w' not in arrays:                                     # of one head as wide as the model
    width = arrays['qkv'].shape[1]
    arrays = arrays | dict(attn_out_w=np.eye(width), attn_out_b=np.zeros(width))
  values = {'attention.wq': _t(q), 'attention.wk': _t(k), 'attention.wv': _t(v)}
  for name, place in places.items():
    array = np.roll(arrays[name], -1, 0) if released and name in ('router_w', 'router_b') else arrays[name]
    array = array[:-1] if released and name.startswith('film') else array
    values[place] = _t(array) if name in _TURNED else array
  for place, value in values.items():
    variable = functools.reduce(lambda m, key: m[int(key)] if key.isdigit() else getattr(m, key),
                                place.split('.'), block)
    assert variable.shape == value.shape, (place, variable.shape, value.shape)
    variable[...] = jnp.asarray(value)
  return block


def _run(case, stack):
  """(dx, (y, Assignments of the blocks), gradients of the blocks) of sum(y * upstream)."""
  c = case.config
  ctx = models_hf.context(jnp.zeros((c['B'], c['N']), jnp.int32))
  seen = visible.Visible(mask=visible.same_segment(ctx.segments, ctx.segments))
  ctx = ctx.replace(visible=dict(attention=seen))

  def loss(x, stack):
    chosen = []
    for block in stack:
      h, _, _ = block.run('attention', block.attention_norm(x), ctx, {})
      chosen.append(block.layer.router(x + h, ctx, {}).assignment)
      x, _, _ = block(x, ctx, {})
    return jnp.sum(x * case['upstream']), (x, chosen)
  with jax.default_matmul_precision('highest'):
    (dx, dstack), out = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(jnp.asarray(case['x']), stack)
  return dx, out, dstack
