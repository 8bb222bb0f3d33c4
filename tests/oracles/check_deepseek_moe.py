"""Checks of DeepSeekMoE (the 16B release), the DeepSeek-V3 gate, and the blocks of V2 and V3."""

import functools

import blocks_hf
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core import assignment
from stmoe.core import choices
from stmoe.routers import deepseek_moe
from stmoe.routers import deepseek_v3


def v1_gate_and_losses(case):
  c = case.config
  x = case['x']                                                      # [B, S, D]
  # Its loss is counted per sequence, or over the whole batch, which is then our one routing group.
  x = x if c['seq_aux'] else x.reshape(1, -1, c['D'])
  logits = jnp.einsum('gsd,ed->gse', x, case['weight'], precision='highest')
  route = functools.partial(deepseek_moe.deepseek_moe, k=c['k'], normalize_gates=c['norm_topk_prob'])
  a, aux = jax.jit(route)(logits, np.ones(logits.shape[:2], bool))
  blocks_hf.compare_choices(case, a)
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
  blocks_hf.compare_choices(case, a)
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


def _block(case, router):
  c = case.config
  bias = case['e_score_correction_bias'] if 'e_score_correction_bias' in case else None
  blocks_hf.block(case, router, dict(d_ff=c['F'], num_shared=c['n_shared_experts']), bias)


def v2_block(case):
  c = case.config
  case.option('score', dict(softmax=True), 'softmax')
  groups = case.option('topk_method', dict(
      greedy={}, group_limited_greedy=dict(num_groups=c['n_group'], kept_groups=c['topk_group'])), 'greedy')
  # The reference reads `norm_topk_prob` and does nothing with it.
  _block(case, dict(groups, name='deepseek_moe', route_scale=c['routed_scaling_factor']))


def v3_block(case):
  c = case.config
  case.option('score', dict(sigmoid=True), 'sigmoid')
  _block(case, dict(
      name='deepseek_v3', num_groups=c['n_group'], kept_groups=c['topk_group'],
      normalize_gates=c['norm_topk_prob'], route_scale=c['routed_scaling_factor']))
