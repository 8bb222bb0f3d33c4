"""Checks of Avg-K: the paper's memory, EMoE's blocks of a SwiGLU layer, the gate that follows the keys."""

import functools

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe.core import assignment
from stmoe.core.execute import einsum
from stmoe.layers import avg_k

HIGHEST = jax.default_matmul_precision('highest')


def _layer(d_model, keys, values, up=None, **fields):
  """The layer with keys [B,g,D], values [B,g,D] and, of gated cells, the other matrices [B,g,D]."""
  blocks, cells = keys.shape[:2]
  layer = avg_k.AvgK(d_model, d_ff=cells, num_blocks=blocks, gated_cells=up is not None, executor='einsum',
                     rngs=nnx.Rngs(0), **fields)
  turned = lambda w: jnp.asarray(np.swapaxes(w, -1, -2))
  layer.experts.wi.set_value(turned(keys)), layer.experts.wo.set_value(jnp.asarray(values))
  if up is not None:
    layer.experts.wg.set_value(turned(up))
  return layer


def _chosen(a, blocks):
  """[S,B] which blocks the tokens of the one group of an Assignment have."""
  return np.asarray(assignment.masks(a)[0].any(-1)[0]).astype(int)


def memory_formula(case):
  c = case.config
  activation = case.option('activation', activations.TORCH)
  keys, values = case['keys'], case['values']
  # Equal scores go to the lower index, whether a case has them or not.
  case.option('ties', {False: None, True: None})
  assert keys.shape == (c['blocks'], c['block_size'], c['D'])
  with jax.enable_x64(True):
    x = jnp.asarray(case['x'])[None]                                 # [1, T, D]
    mask = jnp.ones((1, c['tokens']), bool)
    for score, end in (('key', ''), ('hidden', '_vanilla')):
      layer = _layer(c['D'], keys, values, activation=activation, score=score, k=c['active_blocks'])
      logits = layer.router.logits(x, None)
      a, _ = avg_k.avg_k(logits, mask, c['active_blocks'], c['tokens'])
      if score == 'key':
        case.assert_close('gate', layer.keys())
        case.assert_close('score', logits[0])
      np.testing.assert_array_equal(_chosen(a, c['blocks']), case[f'chosen{end}'])
      case.assert_close(f'y{end}', einsum.execute(x, a, layer.experts)[0])


# The reference's `select` -> ours.
SELECT = {'gate': 'key', 'up': 'up', 'up_abs': 'up_abs', 'inter': 'hidden', 'inter_abs': 'hidden_abs'}


@jax.jit
@functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
def _run(layer, x, cotangent):
  ctx = models_hf.context(jnp.zeros(x.shape[:2], jnp.int32))
  y, _, _ = layer(x, ctx, {})
  return jnp.sum(y * cotangent), (y, layer.router.logits(x, ctx), layer.router(x, ctx, {}).assignment)


def block_ffn_swiglu(case):
  c = case.config
  cut = lambda w: w.reshape(c['blocks'], -1, c['D'])
  up, values = cut(case['up_proj']), cut(case['down_proj'].T)
  keys = cut(case['gate_proj'])
  for name in [name.removeprefix('y_') for name in case.names('y_')]:
    layer = _layer(c['D'], keys, values, up, activation='silu', score=SELECT[name], k=c['active'])
    with HIGHEST:
      grads, (y, logits, a) = _run(layer, jnp.asarray(case['x']), case['cotangent'])
    case.assert_close(f'y_{name}', y)
    case.assert_close(f'score_{name}', logits)
    np.testing.assert_array_equal(assignment.masks(a)[0].any(-1), case[f'mask_{name}'] > 0)
    if f'grad_x_{name}' in case:
      case.assert_close(f'grad_x_{name}', grads[1])
      case.assert_close(f'grad_gate_{name}', np.swapaxes(grads[0].experts.wi[...], 1, 2).reshape(-1, c['D']))
    if name == 'gate':
      case.assert_close('mean_key', layer.keys())


def split_and_gate_update(case):
  c = case.config
  order = np.argsort(case['labels'], kind='stable')                  # their order in a block stays
  keys, values = case['w_in'][order], case['w_out'][:, order]
  case.assert_close('w_in_blocks', keys)
  case.assert_close('w_out_blocks', values)
  cut = lambda w: w.reshape(c['blocks'], c['block_size'], c['D'])
  layer = _layer(c['D'], cut(keys), cut(values.T), k=1, momentum=c['momentum'], normalize=c['normalise'],
                 weighted=c['value_norm_weighted'])
  layer.gate[...] = jnp.asarray(case['gate_before'])
  layer.commit(None)
  case.assert_close('gate_after', layer.gate[...])
  with HIGHEST:
    case.assert_close('score', layer.router.logits(jnp.asarray(case['x'])[None], None)[0])
