"""Checks of MPOE: the layer with its top-1 router, experts with a shared centre, the decomposition."""

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core.execute import einsum
from stmoe.core.transport import layouts
from stmoe.experts import mlp
from stmoe.experts import mpo
from stmoe.experts.virtual import copy
from stmoe.layers import moe
from stmoe.routers import mpoe
from stmoe.surgery import chains

HIGHEST = jax.default_matmul_precision('highest')


def switch_layer(case):
  c = case.config
  tokens, drops = c['B'] * c['T'], case.option('drop_tokens', {False: False, True: True})
  router = mpoe.Mpoe(c['D'], num_experts=c['E'], num_virtual=int(drops), pass_dropped=drops, rngs=nnx.Rngs(0))
  bank = mlp.Mlp(c['D'], num_experts=c['E'], d_ff=c['H'], rngs=nnx.Rngs(0))
  turned = lambda name: jnp.asarray(np.swapaxes(case[name], -1, -2))               # torch: [out,in]
  router.w[...], router.b[...] = turned('router_w'), jnp.asarray(case['router_b'])
  bank.wi[...], bank.wo[...] = turned('wi'), turned('wo')
  scale_prob = case.option('is_scale_prob', {False: False, True: True})
  kept = jnp.asarray(case['kept'], jnp.float32)[None]
  assert drops or kept.all()
  capacity = int(c['capacity_factor'] * tokens / c['E']) if drops else tokens
  assert not drops or capacity == c['capacity']

  def run(router, x):
    x = x.reshape(1, tokens, c['D'])
    logits = router.logits(x, None)
    a, aux = mpoe.mpoe(logits, jnp.ones((1, tokens), bool), capacity, priority=kept, scale_prob=scale_prob,
                       num_virtual=int(drops), pass_dropped=drops)
    y = moe.with_virtual(einsum.execute(x, a, bank), x, a, [copy.Copy(c['D'], rngs=None)] * drops)
    y = y.reshape(c['B'], c['T'], c['D'])
    return jnp.sum(y * case['cotangent']), (y, aux, jax.nn.softmax(logits)[0])

  with HIGHEST:
    grads, (y, aux, probs) = jax.jit(jax.grad(run, (0, 1), has_aux=True))(router, jnp.asarray(case['x']))
  case.assert_close('y', y)
  case.assert_close('prob', probs)
  case.assert_close('prob_sum', probs.sum(0))
  np.testing.assert_array_equal(np.argmax(probs, -1), case['route'])
  # The reference counts all tokens of an expert, as `load` does; the overflow's place is never chosen.
  case.assert_close('counts', aux.load[:c['E']])
  case.assert_close('grad_x', grads[1])
  case.assert_close('grad_router_w', grads[0].w[...].T)
  case.assert_close('grad_router_b', grads[0].b[...])


NAMES = {'GELU': 'gelu', 'ReLU': 'relu', 'SiLU': 'silu', 'Tanh': 'tanh', 'Sigmoid': 'sigmoid', 'ELU': 'elu',
         'SELU': 'selu', 'ReLU6': 'relu6', 'Softplus': 'softplus', 'Mish': 'mish'}


def experts_shared_centre(case):
  c = case.config
  case.option('dtype', {'float64': None})
  activation = activations.TORCH[case.option('activation', NAMES | dict(zip(NAMES.values(), NAMES.values())))]
  with jax.enable_x64(True):
    bank = _bank(case, activation)
    dense = {name: jnp.swapaxes(chain(), 1, 2) for name, chain in (('w1', bank.wi), ('w2', bank.wo))}
    for name, w in dense.items():
      case.assert_close(f'dense_{name}', w)

    def weighed(bank):
      y = bank(layouts.Buckets(jnp.asarray(case['x']))).x
      return jnp.sum(y * case['cotangent']), y
    grads, y = jax.jit(jax.grad(weighed, has_aux=True))(bank)
    case.assert_close('y', y)
    assert y.dtype == c['dtype']
    for name, chain in (('w1', grads.wi), ('w2', grads.wo)):
      for number, core in enumerate(_cores(chain)):
        case.assert_close(f'{name}_core{number}_grad', _turned(core[...]))


def _bank(case, activation):
  c = case.config
  (out1, in1), (out2, in2) = c['w1_factors'], c['w2_factors']
  assert tuple(in1) == tuple(out2) and tuple(in2) == tuple(out1)
  bank = mpo.Mpo(c['D'], num_experts=c['E'], d_ff=c['H'], inward=tuple(in1), outward=tuple(out1),
                 activation=activation, use_bias=True, rngs=nnx.Rngs(0))
  for name, chain, factors in (('w1', bank.wi, (in1, out1)), ('w2', bank.wo, (in2, out2))):
    assert list(mpo.bonds(*map(tuple, factors))) == c[f'bonds_{name}']
    for number, core in enumerate(_cores(chain)):
      _set(core, _turned(case[f'{name}_core{number}']))
  _set(bank.bi, case['b1']), _set(bank.bo, case['b2'])
  return bank


def _cores(chain):
  return [*chain.left, chain.central, *chain.right]


def _turned(core):
  """[..,d,i,j,d'] whose factors i, j are those of ours in the other order: torch has [out,in]."""
  return jnp.swapaxes(jnp.asarray(core), -3, -2)


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable.set_value(jnp.asarray(value))                             # in float64


def decomposition(case):
  c, w = case.config, case['W']
  factors = tuple(c['in_factors']), tuple(c['out_factors'])
  with jax.enable_x64(True):
    whole = _chain(chains.decompose, w, factors)
  assert list(mpo.bonds(*factors)) == c['full_bonds'] == _bonds(whole)
  assert sum(core.size for core in whole) == c['full_parameters']
  np.testing.assert_allclose(_matrix(whole), w, rtol=0, atol=1e-8 * np.abs(w).max())
  for name in case.names('spectrum_'):
    case.assert_close(name, _spectrum(w, factors, int(name.rpartition('_')[2])))
  for most in c['caps']:
    with jax.enable_x64(True):
      cut, one_by_one = (_chain(make, w, factors, most) for make in (chains.decompose, chains.split))
    assert _bonds(cut) == c[f'bonds_{most}'] == list(mpo.bonds(*factors, most))
    assert sum(core.size for core in cut) == c[f'parameters_{most}']
    for kind, cores, error in (('reconstruction', cut, 'rel_error'),
                               ('sequential', one_by_one, 'sequential_rel_error')):
      case.assert_close(f'{kind}_{most}', _matrix(cores), like='W')
      ours = np.linalg.norm(_matrix(cores) - w) / np.linalg.norm(w)
      np.testing.assert_allclose(ours, c[f'{error}_{most}'], rtol=1e-7)


def _chain(make, w, factors, most=None):
  return list(map(np.asarray, make(jnp.asarray(w), *factors, most)))


def _bonds(cores):
  return [core.shape[0] for core in cores] + [1]


def _matrix(cores):
  with jax.enable_x64(True):
    return np.asarray(mpo.matrices([jnp.asarray(core) for core in cores])[0])


def _spectrum(w, factors, bond):
  """The singular values of W reshaped to [(i1 j1 .. im jm), rest]."""
  parts = len(factors[0])
  order = [axis for m in range(parts) for axis in (m, parts + m)]
  rows = np.prod([i * j for i, j in zip(*factors)][:bond])
  turned = w.reshape(*factors[0], *factors[1]).transpose(order).reshape(rows, -1)
  return np.linalg.svd(turned, compute_uv=False)
