"""Checks of DeepSeekMoE (the 16B release), the DeepSeek-V3 gate, and the blocks of V2 and V3.

The order of a token's choices has no meaning; ours falls by the score that selects.
"""

import functools

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.core import assignment
from stmoe.core import choices
from stmoe.core import contract
from stmoe.routers import deepseek_moe
from stmoe.routers import deepseek_v3

HIGHEST = jax.default_matmul_precision('highest')


def _context(x):
  """The context of unpadded sequences x [B,T,D]."""
  whole = jnp.ones(x.shape[:2], jnp.int32)
  positions = whole * jnp.arange(x.shape[1])
  return contract.Context(mask=whole > 0, ids=whole, positions=positions, segments=whole, step=jnp.int32(0),
                          tokens=jnp.float32(whole.size))


def _compare_choices(case, a):
  """The set of experts of every token with their weights."""
  order = np.argsort(case['top_k_index'], axis=-1)
  listed = lambda field: np.asarray(field).reshape(a.token.shape[0], a.choices, -1).swapaxes(1, 2).reshape(
      -1, a.choices)                                                 # [G, k*S] -> [T, k]
  expert = listed(a.expert)
  mine = np.argsort(expert, axis=-1)
  np.testing.assert_array_equal(np.take_along_axis(expert, mine, -1),
                                np.take_along_axis(case['top_k_index'], order, -1))
  back = np.argsort(order, axis=-1)
  ours = np.take_along_axis(np.take_along_axis(listed(a.weight), mine, -1), back, -1)
  case.assert_close('top_k_weights', ours)


def v1_gate_and_losses(case):
  c = case.config
  x = case['x']                                                      # [B, S, D]
  # Its loss is counted per sequence, or over the whole batch, which is then our one routing group.
  x = x if c['seq_aux'] else x.reshape(1, -1, c['D'])
  logits = jnp.einsum('gsd,ed->gse', x, case['weight'], precision='highest')
  route = functools.partial(deepseek_moe.deepseek_moe, k=c['k'], normalize_gates=c['norm_topk_prob'])
  a, aux = jax.jit(route)(logits, np.ones(logits.shape[:2], bool))
  _compare_choices(case, a)
  if c['alpha']:                                                     # 0: the reference has no loss at all
    case.assert_close('aux_loss', c['alpha'] * aux.losses['balance'][None])


GROUP_SCORES = {'max score': 1, 'sum of two best biased scores': 2}


def v3_gate(case):
  c = case.config
  logits = jnp.einsum('gsd,ed->gse', case['x'][None], case['weight'], precision='highest')
  mask, bias = np.ones(logits.shape[:2], bool), case['bias'] if c['has_bias'] else None
  # Without groups none is scored, and the file may say either.
  best = case.option('group_score', GROUP_SCORES) if c['n_groups'] > 1 else 1
  fields = dict(k=c['k'], num_groups=c['n_groups'], kept_groups=c['topk_groups'],
                route_scale=c['route_scale'], normalize_gates=c['normalised'])
  softmax = case.option('score_func', dict(softmax=True, sigmoid=False))
  if softmax and bias is None and best == 1:
    a, _ = jax.jit(functools.partial(deepseek_moe.deepseek_moe, **fields))(logits, mask)
  elif not softmax and (best == 2 or c['n_groups'] == 1):
    bias = np.zeros(c['E'], np.float32) if bias is None else bias
    a, _ = jax.jit(functools.partial(deepseek_v3.deepseek_v3, **fields))(logits, bias, mask)
  else:
    a = _gate(logits, bias, softmax, best, **fields)
  _compare_choices(case, a)
  dense = jnp.zeros((c['T'], c['E'])).at[a.token[0], a.expert[0]].set(a.weight[0])
  case.assert_close('dense_weights', dense)


def _gate(logits, bias, softmax, best, k, num_groups, kept_groups, route_scale, normalize_gates):
  """The combinations that the reference's options allow and no published model is: no router of ours."""
  scores = jax.nn.softmax(logits, axis=-1) if softmax else jax.nn.sigmoid(logits)
  biased = scores if bias is None else scores + bias
  choice = choices.top(choices.within_groups(biased, num_groups, kept_groups, best), k)
  gates = choices.values(scores, choice)
  gates = gates / gates.sum(axis=-1, keepdims=True) if normalize_gates else gates
  edges = assignment.from_choices(choice, gates * route_scale, logits.shape[-1])
  return assignment.cap(edges, edges.num_tokens)


def _block(case, router, fields):
  c, activation = case.config, case.option('act', activations.TORCH)
  x = case['hidden_states']
  # Every parameter is replaced by the case's; torch's [out, in] becomes [in, out].
  routed = dict(name='moe', executor='einsum', router=dict(fields, name=router, num_experts=c['E'], k=c['k']),
                experts=dict(name='glu', d_ff=c['F'], activation=activation))
  layer = lookup.recipe('layer', dict(name='shared', d_ff=c['F'], num_shared=c['n_shared_experts'],
                                      activation=activation, inner=routed))(c['D'], rngs=nnx.Rngs(0))
  inner = layer.inner
  inner.router.w[...] = case['router_weight'].T
  if 'e_score_correction_bias' in case:
    inner.router.bias[...] = case['e_score_correction_bias']
  gate, up = np.split(case['gate_up_proj'], 2, axis=1)               # rows 0..F-1, rows F..2F-1
  bank = inner.experts
  # act(x W_gate) * (x W_up): our wi is the matrix under the activation.
  bank.wi[...], bank.wg[...] = gate.swapaxes(1, 2), up.swapaxes(1, 2)
  bank.wo[...] = case['down_proj'].swapaxes(1, 2)
  layer.shared.wi[...], layer.shared.wg[...] = case['shared_gate_proj'].T, case['shared_up_proj'].T
  layer.shared.wo[...] = case['shared_down_proj'].T

  @jax.jit
  def run(layer, x):
    ctx = _context(x)
    y, _, _ = layer(x, ctx, {})
    return y, layer.inner.router(x, ctx, {}).assignment, jnp.einsum(
        'btd,de->bte', x, layer.inner.router.w[...], precision='highest')

  with HIGHEST:
    y, a, logits = run(layer, x)
  case.assert_close('router_logits', logits.reshape(-1, c['E']))
  _compare_choices(case, a)
  case.assert_close('output', y)


def v2_block(case):
  c = case.config
  case.option('score', dict(softmax=True), 'softmax')
  groups = case.option('topk_method', dict(
      greedy={}, group_limited_greedy=dict(num_groups=c['n_group'], kept_groups=c['topk_group'])), 'greedy')
  # The reference reads `norm_topk_prob` and does nothing with it.
  _block(case, 'deepseek_moe', dict(groups, route_scale=c['routed_scaling_factor']))


def v3_block(case):
  c = case.config
  case.option('score', dict(sigmoid=True), 'sigmoid')
  _block(case, 'deepseek_v3', dict(
      num_groups=c['n_group'], kept_groups=c['topk_group'], normalize_gates=c['norm_topk_prob'],
      route_scale=c['routed_scaling_factor']))
