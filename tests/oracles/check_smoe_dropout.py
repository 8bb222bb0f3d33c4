"""Checks of SMoE-Dropout: the random gate, the learned baseline's balance loss, the schedules of k."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.routers import smoe_dropout


def _route(case, k):
  """(dense weights [T,E], sets of chosen experts by row, Aux) of one group of T tokens."""
  bias = case['gate_bias'] if 'gate_bias' in case else 0.0
  logits = case['x'] @ case['gate_weight'].T + bias                  # [T, E]; torch's matrix is [out,in]
  case.assert_close('logits', logits)
  # More edges than k, as in training: those of rank k and more must be dead.
  most = min(k + 2, logits.shape[-1])
  a, aux = jax.jit(lambda logits, k: smoe_dropout.smoe_dropout(
      logits, jnp.ones(logits.shape[:2], bool), k, most))(logits[None], k)
  _, combine = a.masks()                                             # [1, T, E, C]
  return np.asarray(combine[0].sum(-1)), aux


def _compare_scores(case, weights):
  # The order inside a row's k is not significant: compare by expert.
  rows = np.arange(len(weights))[:, None]
  case.assert_close('top_k_score', weights[rows, case['top_k_index']])
  live = np.zeros(weights.shape, bool)
  live[rows, case['top_k_index']] = True
  np.testing.assert_array_equal(weights > 0, live)


def random_gate(case):
  weights, aux = _route(case, case.config['k'])
  _compare_scores(case, weights)
  case.assert_close('dense_weights', weights)
  assert aux.metrics['active_k'] == case.config['k']


def balance_gate(case):
  weights, aux = _route(case, case.config['k'])
  _compare_scores(case, weights)
  case.assert_close('balance_loss', aux.losses['balance'][None])


def k_schedule(case):
  config = case.config
  ends = config['k_min'], config['k_max']
  steps = case['steps']
  case.assert_close('k', [smoe_dropout.active(config['mode'], int(s), config['overall_steps'], *ends)
                          for s in steps])
  table = smoe_dropout.changes(config['mode'], config['overall_steps'], *ends)
  case.assert_close('k', jax.vmap(lambda s: smoe_dropout.look_up(table, s))(jnp.asarray(steps)))
