"""Checks of BAM: a parallel block of attention experts and top-1 feed-forward experts, in float64."""

import functools
import types

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe.attention import bam
from stmoe.core.execute import einsum
from stmoe.parts import block as blocks
from stmoe.parts import norm
from stmoe.parts import visible
from stmoe.routers import switch

WEIGHTS = ('wq', 'wk', 'wv', 'wo', 'w_attention_router', 'w_ffn_router', 'w_gate', 'w_up', 'w_down')


class Glu(types.SimpleNamespace):
  """n experts (silu(x Wg) * x Wu) Wd."""

  def __call__(self, rows, key=None):
    gated = rows.linear(self.w_gate).map(lambda g, u: jax.nn.silu(g) * u, rows.linear(self.w_up))
    return gated.linear(self.w_down)


def block(case):
  kind = case.option('kind', {name: name for name in ('kv', 'shared_kv', 'btx')})
  with jax.enable_x64(True):
    weights = {name: jnp.asarray(case[name]) for name in WEIGHTS}
    run = jax.jit(jax.grad(_loss, argnums=1, has_aux=True), static_argnums=(2, 3))
    dx, (y, gates, a, aux) = run(weights | dict(norm=jnp.asarray(case['norm'])), jnp.asarray(case['x']),
                                 case.config['heads'], kind, case['cotangent'])
  case.assert_close('ffn_choice', a.expert.reshape(dx.shape[:2]))
  case.assert_close('attention_gate', gates)
  case.assert_close('y', y), case.assert_close('grad_x', dx)
  case.assert_close('balance', aux.losses['balance']), case.assert_close('z_loss', aux.losses['z'])
  _module(case, kind)


def _loss(w, x, heads, kind, cotangent):
  """(sum(y * cotangent), all that is compared) of the block by our functions."""
  mask = jnp.ones(x.shape[:2], bool)
  centred = x - x.mean(-1, keepdims=True)
  h = centred / jnp.sqrt(jnp.mean(centred ** 2, -1, keepdims=True) + 1e-5) * w['norm']
  head = x.shape[-1] // heads
  each = lambda m: jnp.einsum('btd,ndk->btnk', h, m).reshape(*x.shape[:2], -1, heads, head)
  k, v = each(w['wk']), each(w['wv'])
  k, v = (k, v) if kind == 'kv' else (k[:, :, 0], v[:, :, 0])
  k, v = (jnp.moveaxis(a, 1, -2) for a in (k, v))                    # places last but one
  gates = jax.nn.softmax(h @ w['w_attention_router'])
  mixture = jnp.ones_like(gates[..., :1]) if kind == 'btx' else gates
  seen = visible.causal(mask.astype(jnp.int32))
  attended = bam.mixed(bam.attend(each(w['wq']), k, v, seen, head ** -0.5), mixture, w['wo'])
  rows = h.reshape(1, -1, h.shape[-1])                               # balance is of the whole batch
  a, aux = switch.switch(rows @ w['w_ffn_router'], mask.reshape(1, -1), rows.shape[1])
  routed = einsum.execute(rows, a, Glu(**{name: w[name] for name in ('w_gate', 'w_up', 'w_down')}))
  y = x + attended + routed.reshape(x.shape)
  return jnp.sum(y * cotangent), (y, gates, a, aux)


def _module(case, kind):
  """The block that configurations make, in float32."""
  c = case.config
  layer = _built(case, kind)
  ctx = models_hf.context(jnp.zeros((c['B'], c['S']), jnp.int32), causal=True)
  ctx = ctx.replace(visible=dict(attention=visible.Visible(mask=visible.causal(ctx.segments))))
  with jax.default_matmul_precision('highest'):
    y, reports, _ = jax.jit(lambda layer, x: layer(x, ctx, {}))(layer, jnp.asarray(case['x'], jnp.float32))
  scale = np.abs(case['y']).max()
  np.testing.assert_allclose(y, case['y'], atol=1e-5 * scale)        # float32, unlike `_loss`
  np.testing.assert_allclose(reports[''].losses['balance'], case['balance'], rtol=1e-5)
  assert (kind == 'btx') == ('.attention' not in reports)


def _built(case, kind):
  c = case.config
  sparse = dict(num_experts=c['experts'], capacity_factor=(None, None))
  router = dict(name='st_moe', k=c['experts'], normalize_gates=False, second_policy='all') | sparse
  mixed = dict(name='bam', router=router, shared_kv=kind == 'shared_kv')
  attention = lookup.recipe('attention', dict(name='attention') if kind == 'btx' else mixed)
  ffn = lookup.recipe('layer', dict(
      name='moe', executor='einsum', group_size=c['B'] * c['S'], router=dict(name='switch') | sparse,
      experts=dict(name='glu', d_ff=c['F'], activation='silu')))
  heads = dict(num_heads=c['heads'], head_dim=c['D'] // c['heads'])
  attends = lambda d_model, rngs: attention(d_model, **heads, rngs=rngs)
  made = functools.partial(blocks.Block, layer=ffn, attention=attends, norm=norm.LayerNorm)
  layer = lookup.recipe('around', dict(name='parallel', block=made))(c['D'], rngs=nnx.Rngs(0))
  inner = layer.block
  _set(inner.attention_norm.scale, case['norm'])
  for name in ('wq', 'wk', 'wv', 'wo'):
    own = getattr(getattr(inner.attention, 'experts', None), name, None) is not None
    holder = inner.attention.experts if own else inner.attention
    _set(getattr(holder, name), case[name] if own else case[name][0])
  if kind != 'btx':
    _set(inner.attention.router.w, case['w_attention_router'])
  _set(inner.layer.router.w, case['w_ffn_router'])
  bank = inner.layer.experts
  for variable, name in ((bank.wi, 'w_gate'), (bank.wg, 'w_up'), (bank.wo, 'w_down')):
    _set(variable, case[name])
  return layer


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable[...] = jnp.asarray(value, jnp.float32)
