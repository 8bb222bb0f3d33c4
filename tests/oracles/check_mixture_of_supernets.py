"""Checks of Mixture-of-Supernets: the mixtures, the weights that they make, and a BERT feed-forward layer."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.layers import mixed_weights


def ffn(case):
  c = case.config
  neuron = case.option('neuron', {False: False, True: True})
  d, f = c['active_width'], c['active_ffn']
  deep = 'router_w0' in case                                         # the router has two layers, or one
  hidden = len(case['router_w0']) if deep else 0
  with jax.enable_x64(True):
    layer = mixed_weights.MixedWeights(
        c['D'], d_ff=c['F'], num_experts=c['E'], given='architecture', code_size=c['arch'], hidden=hidden,
        neuron=neuron, activation='gelu_exact', rngs=nnx.Rngs(0))
    turned = lambda name: jnp.asarray(np.swapaxes(case[name], -1, -2))               # torch: [out,in]
    if deep:
      _set(layer.code.w0, turned('router_w0')), _set(layer.code.b0, case['router_b0'])
    for number, (w, b) in enumerate(zip(layer.code.w, layer.code.b), 1):
      _set(w, turned(f'router{number}_w')), _set(b, case[f'router{number}_b'])
    bank = layer.experts
    _set(bank.wi, turned('w1')), _set(bank.wo, turned('w2'))
    _set(bank.bi, case['b1']), _set(bank.bo, case['b2'])
    code = jnp.asarray(case['arch'])
    mixtures = layer.code(code)
    wi, _, wo, _ = layer.subnet(code)
    # The residual stream is as wide as the largest network's; what is not active there is 0.
    x = jnp.pad(jnp.asarray(case['x']), ((0, 0), (0, 0), (0, c['D'] - d)))
    y = layer.run(x, code, f)[..., :d] + case['x']
  for number, (r, active) in enumerate(zip(mixtures, (f, d)), 1):
    case.assert_close(f'prob{number}', r[:active] if neuron else r)
  case.assert_close('weight1', np.asarray(wi)[:d, :f].T)
  case.assert_close('weight2', np.asarray(wo)[:f, :d].T)
  case.assert_close('y', _layer_norm(np.asarray(y), case['ln_scale'][:d], case['ln_bias'][:d]))


def _layer_norm(x, scale, bias, epsilon=1e-12):
  """BERT's norm after the sum; the layer itself leaves it to its block."""
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + epsilon) * scale + bias


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable.set_value(jnp.asarray(value))
