"""Checks of LatentMoE: Nemotron's sparse block with its shared expert, choices, output and gradients."""

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup

# What the two matrices of an expert have between them -> (name of the function, gated).
ACTIVATIONS = {'relu squared, not gated': 'relu2', 'relu, not gated': 'relu', 'silu, not gated': 'silu'}
HIGHEST = jax.default_matmul_precision('highest')


def block(case):
  layer = _layer(case)
  ctx = models_hf.context(jnp.zeros(case['x'].shape[:2], jnp.int32), causal=True)

  def weighed(layer, x):
    y, _, _ = layer(x, ctx, {})
    return jnp.sum(y * case['cotangent']), y

  with HIGHEST:
    run = jax.jit(jax.grad(weighed, (0, 1), has_aux=True, allow_int=True))           # it counts its updates
    (grads, dx), y = run(layer, jnp.asarray(case['x']))
    a = jax.jit(lambda router, x: router(x, ctx, {}).assignment)(layer.inner.router, jnp.asarray(case['x']))
  case.assert_close('y', y)
  _choices(case, a)
  case.assert_close('grad_x', dx)
  for name, (variable, turn) in _variables(grads, case.config['latent']).items():
    case.assert_close(f'grad_{name}', turn(variable[...]))


def _layer(case):
  c = case.config
  activation = case.option('activation', ACTIVATIONS)
  router = dict(name='deepseek_v3', num_experts=c['E'], k=c['k'], num_groups=c['groups'],
                kept_groups=c['topk_groups'], normalize_gates=c['normalise'], route_scale=c['scale'])
  routed = dict(name='moe', executor='einsum', router=router,
                experts=dict(name='mlp', d_ff=c['F'], activation=activation))
  if c['latent'] is not None:
    routed |= dict(name='latent_moe', latent=c['latent'])
  layer = lookup.recipe('layer', dict(name='shared', d_ff=c['F_shared'], activation=activation, gated=False,
                                      inner=routed))(c['D'], rngs=nnx.Rngs(0))
  for name, (variable, turn) in _variables(layer, c['latent']).items():
    value = turn(case[name])
    assert variable.shape == value.shape, (name, variable.shape, value.shape)
    variable[...] = jnp.asarray(value)
  layer.inner.router.bias[...] = jnp.asarray(case['gate_e_score_correction_bias'])
  return layer


def _variables(layer, latent):
  """Dict name in the case -> (variable, transposition): torch's matrices are [out,in], ours [in,out]."""
  last = lambda a: np.swapaxes(a, -1, -2)
  found = dict(gate_weight=layer.inner.router.w, experts_up_proj=layer.inner.experts.wi,
               experts_down_proj=layer.inner.experts.wo, shared_experts_up_proj_weight=layer.shared.wi,
               shared_experts_down_proj_weight=layer.shared.wo)
  if latent is not None:
    found |= dict(fc1_latent_proj_weight=layer.inner.inward, fc2_latent_proj_weight=layer.inner.outward)
  return {name: (variable, last) for name, variable in found.items()}


def _choices(case, a):
  """The experts of every token in the order of their ids, with their weights."""
  listed = lambda field: np.asarray(field).reshape(len(a.token), a.choices, -1).swapaxes(1, 2).reshape(
      -1, a.choices)                                                 # [G, k*S] -> [B*S, k]
  order = np.argsort(listed(a.expert), axis=-1)
  case.assert_close('chosen', np.take_along_axis(listed(a.expert), order, -1))
  case.assert_close('weights', np.take_along_axis(listed(a.weight), order, -1))
