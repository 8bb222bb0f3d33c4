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
  ctx = ctx.replace(visible=_seen(ctx, layer.head_dim, c['rope_base'], c['causal']))

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
  _copy(case, layer, 'param/', c['heads'], c['experts'], c['head_dim'])
  return layer


def _copy(case, layer, prefix, heads, experts, head_dim):
  """Sets the weights of an attention layer to the arrays of `case` whose names begin with `prefix`."""
  _set(layer.wq, case[f'{prefix}q/weight'].T), _set(layer.wk, case[f'{prefix}k/weight'].T)
  for name in layer.reports:
    weights = case[f'{prefix}sel_{name}']
    _set(getattr(layer, name).router.heads.w, weights.reshape(heads, experts, -1).swapaxes(1, 2))
  if experts > 1:
    _set(layer.v.experts.w, case[f'{prefix}v']), _set(layer.o.experts.w, case[f'{prefix}o'])
  else:
    _set(layer.wv, case[f'{prefix}v'].T)
    _set(layer.o.experts.w, case[f'{prefix}o'].T.reshape(heads, head_dim, -1))


def _seen(ctx, turned, base, causal):
  """What attention sees: with rotary positions on the first `turned` numbers of a head."""
  mask = visible.causal(ctx.segments) if causal else visible.same_segment(ctx.segments, ctx.segments)
  return visible.Visible(mask=mask, turn=rotary.table(ctx.positions, turned, base=base))


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable[...] = jnp.asarray(value)
