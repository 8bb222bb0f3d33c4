"""Checks of Dynamic-DINO: the experts and the router that a dense network becomes, and the layer."""

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core.execute import einsum
from stmoe.experts import mlp
from stmoe.routers import dynamic_dino
from stmoe.surgery import dynamic_dino as factorised

OURS = dict(wi=('w1', True), bi=('b1', False), wo=('w2', True), bo=('b2', False))   # torch has [out,in]


def _turned(case, name, turn):
  array = jnp.asarray(case[name])
  return array.swapaxes(-1, -2) if turn else array


def _layer(bank, router_w, x, k, activation, gates):
  """(output [T,D], probabilities [T,E], chosen experts [T,k], gates [T,k], balance loss) of x [T,D]."""
  layer = mlp.Mlp(x.shape[-1], num_experts=len(bank['wi']), d_ff=bank['wi'].shape[-1], activation=activation,
                  use_bias=True, rngs=nnx.Rngs(0))
  for name, array in bank.items():
    getattr(layer, name)[...] = jnp.asarray(array)

  @jax.jit
  def run(layer, x, router_w):
    logits = (x @ router_w)[None]
    a, aux = dynamic_dino.dynamic_dino(logits, jnp.ones((1, len(x)), bool), k, gates)
    return logits, a, aux, einsum.execute(x[None], a, layer)[0]
  with jax.default_matmul_precision('highest'):
    logits, a, aux, y = run(layer, jnp.asarray(x), jnp.asarray(router_w))
  order = np.argsort(np.asarray(a.token[0]), kind='stable')
  chosen, weights = (np.asarray(edges[0])[order].reshape(len(x), k) for edges in (a.expert, a.weight))
  return y, jax.nn.softmax(logits)[0], chosen, weights, aux.losses['balance']


def _same_sets(case, chosen):
  np.testing.assert_array_equal(np.sort(chosen, -1), np.sort(case['experts'], -1))


def surgery(case):
  c = case.config
  copies, k = c['copies_N'], c['pieces_k']
  assert (c['E'], c['active']) == (copies * k, k)
  arrays = {ours: _turned(case, *theirs) for ours, theirs in OURS.items()}
  bank = factorised.experts(arrays, copies, k)
  for ours, (theirs, turn) in OURS.items():
    case.assert_close(f'expert_{theirs}', bank[ours].swapaxes(-1, -2) if turn else bank[ours])
  router_w = factorised.columns(case['router_rows'], k)
  case.assert_close('router_w', router_w.T)
  activation = case.option('activation', activations.TORCH)
  for gates in dynamic_dino.GATES:
    y, _, chosen, weights, _ = _layer(bank, router_w, case['x'], k, activation, gates)
    _same_sets(case, chosen)
    case.assert_close('moe_out', y)
    case.assert_close('dense_out', y)
    case.assert_close('renormalised_gate', weights / k)              # our gates are k times theirs


def forward(case):
  c = case.config
  bank = {ours: _turned(case, *theirs) for ours, theirs in OURS.items()}
  activation = case.option('activation', activations.TORCH, 'relu')
  for gates in dynamic_dino.GATES:
    y, probs, chosen, _, balance = _layer(bank, case['router_w'].T, case['x'], c['k'], activation, gates)
    case.assert_close(f'out_{gates}', y)
    case.assert_close('probs', probs)
    _same_sets(case, chosen)
    case.assert_close('balance_loss', balance)
