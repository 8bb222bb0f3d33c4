"""Checks of DeepSeek-V4's sparse block: experts of the best scores or of a table, with the shared expert."""

from flax import nnx
import blocks_hf
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup


def block(case):
  hashed = case.option('hash', {True: True, False: False})
  layer = _built(case, hashed)
  ctx = models_hf.context(case['ids'])

  def run(layer, x):
    y, _, _ = layer(x, ctx, {})
    return jnp.sum(y * case['cotangent']), (y, layer.inner.router(x, ctx, {}).assignment)

  graph, params, rest = nnx.split(layer, nnx.Param, ...)
  merged = lambda params: nnx.merge(graph, params, rest)
  with blocks_hf.HIGHEST:
    grads, (y, a) = jax.jit(jax.grad(lambda params, x: run(merged(params), x), argnums=(0, 1), has_aux=True))(
        params, jnp.asarray(case['x']))
  case.assert_close('y', y)
  expert, weight = blocks_hf.chosen(a)
  order = np.argsort(expert, axis=-1)
  case.assert_close('chosen', np.take_along_axis(expert, order, -1).astype(np.int32))
  case.assert_close('weights', np.take_along_axis(weight, order, -1))
  case.assert_close('grad_x', grads[1])
  for name, value in _named(merged(grads[0])).items():
    case.assert_close(f'grad_{name}', np.concatenate([w[...].swapaxes(-1, -2) for w in value], axis=-2))


def _built(case, hashed):
  """Our layer with the weights of `case`."""
  c, limit = case.config, case.config.get('swiglu_limit')
  router = dict(name='deepseek_v4', num_experts=c['E'], k=c['k'], hashed=hashed,
                vocab_size=c['vocabulary'], route_scale=c['scale'])
  experts = dict(name='glu', d_ff=c['F'], activation='silu', limit=limit)
  layer = lookup.recipe('layer', dict(
      name='shared', d_ff=case['shared_experts_gate_proj_weight'].shape[0], activation='silu', limit=limit,
      inner=dict(name='moe', executor='einsum', router=router, experts=experts)))(c['D'], rngs=nnx.Rngs(0))
  for name, parts in _named(layer).items():
    for part, value in zip(parts, np.split(case[name].swapaxes(-1, -2), len(parts), axis=-1)):
      assert part.shape == value.shape, name
      part[...] = jnp.asarray(value)
  if hashed:
    layer.inner.router.table[...] = jnp.asarray(case['gate_tid2eid'])
  if 'gate_e_score_correction_bias' in case:
    layer.inner.router.bias[...] = jnp.asarray(case['gate_e_score_correction_bias'])
  return layer


def _named(layer):
  """Dict torch's name -> our Variables, whose transposes it has one after the other."""
  bank, shared = layer.inner.experts, layer.shared
  return {'gate_weight': [layer.inner.router.w], 'experts_gate_up_proj': [bank.wi, bank.wg],
          'experts_down_proj': [bank.wo], 'shared_experts_gate_proj_weight': [shared.wi],
          'shared_experts_up_proj_weight': [shared.wg], 'shared_experts_down_proj_weight': [shared.wo]}
