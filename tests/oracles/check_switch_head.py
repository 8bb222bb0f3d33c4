"""Checks of SwitchHead: one attention layer, its output, regulariser and gradients."""

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf

from stmoe import lookup
from stmoe.parts import rotary
from stmoe.parts import visible


def switch_head(case):
  c = case.config
  layer = _layer(case)
  ctx = models_hf.context(jnp.zeros((c['B'], c['T']), jnp.int32), causal=c['causal'])
  turn = rotary.table(ctx.positions, layer.head_dim, base=c['rope_base'])
  ctx = ctx.replace(visible=visible.Visible(mask=visible.causal(ctx.segments), turn=turn))

  def loss(layer, x, x_norm):
    y, aux, _ = layer.attend(x_norm, x, ctx, {})
    entropy = sum(a.losses['entropy'] for a in aux.values())
    return jnp.sum(y * case['cotangent']) + 1e-3 * entropy, (y, entropy)

  run = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
  (grads, dx, dx_norm), (y, entropy) = run(layer, jnp.asarray(case['x']), jnp.asarray(case['x_norm']))
  case.assert_close('output', y)
  case.assert_close('reg_loss', entropy)
  case.assert_close('grad_x', dx)
  case.assert_close('grad_x_norm', dx_norm)
  for name in layer.reports:
    dw = getattr(grads, name).router.heads.w[...]                    # [H, D, E]
    case.assert_close(f'grad_sel_{name}', dw.swapaxes(1, 2).reshape(-1, c['D']))


def _layer(case):
  """The layer with the weights of `case`. With one expert a head the reference selects no values."""
  c = case.config
  turned = int(c['rotate_fraction'] * c['head_dim'])
  router = dict(name='sigma_moe', num_experts=c['experts'], k=c['k'])
  mixed = ('v', 'o') if c['experts'] > 1 else ('o',)
  layer = lookup.recipe('attention', dict(name='switch_head', router=router, mixed=mixed,
                                          nope_dim=c['head_dim'] - turned))(
      c['D'], num_heads=c['heads'], head_dim=turned, rngs=nnx.Rngs(0))
  _set(layer.wq, case['param/q/weight'].T), _set(layer.wk, case['param/k/weight'].T)
  for name in mixed:
    weights = case[f'param/sel_{name}'].reshape(c['heads'], c['experts'], c['D'])
    _set(getattr(layer, name).router.heads.w, weights.swapaxes(1, 2))
  if c['experts'] > 1:
    _set(layer.v.experts.w, case['param/v']), _set(layer.o.experts.w, case['param/o'])
  else:
    _set(layer.wv, case['param/v'].T)
    _set(layer.o.experts.w, case['param/o'].T.reshape(c['heads'], c['head_dim'], c['D']))
  return layer


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable[...] = jnp.asarray(value)
