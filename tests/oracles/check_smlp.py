"""Checks of the gMLP unit and block, which are the dense and the deterministic sparse all-MLP.

The reference's spatial weights are [heads, output position, input position] and its projections
[out, in]; ours are [in, out].
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe.core import contract
from stmoe.experts import feature
from stmoe.layers import gmlp
from stmoe.layers import spatial
from stmoe.parts import block as blocks
from stmoe.parts import norm


def _swapped(f):
  """f on rows that are channels, as a function of [B,n,C]."""
  return lambda x: jnp.swapaxes(f(jnp.swapaxes(x, 1, 2)), 1, 2)


def _layer_norm(scale, bias, epsilon):
  made = norm.LayerNorm(scale.size, epsilon=epsilon, rngs=nnx.Rngs(0))
  made.scale[...], made.bias[...] = scale, bias
  return made


def spatial_gating_unit(case):
  config = case.config
  normalize = _layer_norm(case['ln_scale'], case['ln_bias'], config.get('ln_eps', 1e-5))
  case.option('act', dict(identity=None), 'identity')                # there is none in any paper
  residual = case['gate_res'] if 'gate_res' in case else None

  def unit(x, weight, bias):
    if config['circulant']:
      w = spatial.toeplitz(weight, case['pos_x'], case['pos_y'])
    else:
      w = jnp.swapaxes(weight, 1, 2)
      w = feature.causal(w) if config['causal'] else w
    mix = _swapped(functools.partial(spatial.mix, w=w, b=bias))
    return gmlp.spatial_gating_unit(x, normalize, mix, residual)

  y, pull = jax.vjp(jax.jit(unit), case['x'], case['weight'], case['bias'])
  case.assert_close('y', y)
  for name, value in zip(('dx', 'dweight', 'dbias'), pull(jnp.asarray(case['grad_seed']))):
    case.assert_close(name, value)


def gmlp_block(case):
  config = case.config
  length, width, hidden, heads = (config[key] for key in ('N', 'D', 'F', 'heads'))
  epsilon = config.get('ln_eps', 1e-5)
  case.option('gelu', {'exact (erf)': None}, 'exact (erf)')          # the reference has no other
  layer = functools.partial(gmlp.Gmlp, length=length, d_ff=hidden, inner=functools.partial(
      spatial.Spatial, heads=heads, causal=config['causal'], circulant=config.get('circulant', False)))
  block = blocks.Block(width, layer=layer, norm=norm.LayerNorm, rngs=nnx.Rngs(0))
  block.layer_norm = _layer_norm(case['pre_ln_scale'], case['pre_ln_bias'], epsilon)
  block.layer.norm = _layer_norm(case['sgu_ln_scale'], case['sgu_ln_bias'], epsilon)
  block.layer.wi[...], block.layer.bi[...] = case['in_w'].T, case['in_b']
  block.layer.wo[...], block.layer.bo[...] = case['out_w'].T, case['out_b']
  if config.get('circulant', False):
    block.layer.inner.w[...] = case['sgu_weight']
    block.layer.inner.row[...], block.layer.inner.column[...] = case['sgu_pos_x'], case['sgu_pos_y']
  else:
    block.layer.inner.w[...] = case['sgu_weight'].swapaxes(1, 2)
  block.layer.inner.b[...] = case['sgu_bias']
  whole = jnp.ones(case['x'].shape[:2], jnp.int32)
  ctx = contract.Context(mask=whole > 0, ids=whole, positions=whole, segments=whole, step=jnp.int32(0),
                         tokens=jnp.float32(whole.size), causal=config['causal'])
  y, aux, _ = jax.jit(lambda block, x: block(x, ctx, {}))(block, case['x'])
  assert aux == {}
  case.assert_close('y', y)
