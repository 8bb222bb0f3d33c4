"""Checks of MC-SMoE (arXiv:2310.01334): low rank plus sparse matrices, and the pruning of rows in training.

Matrices are those of torch, [out,in]; ours are transposed, their rows are columns here.
"""

import math

import jax.numpy as jnp
import numpy as np

from stmoe.surgery import mc_smoe
from stmoe.train import optimizers
from stmoe.train import row_pruning


def low_rank_plus_sparse(case):
  c = case.config
  rank = case.option('rank_rule', {
      'ceil(ratio*H*W/(H+W))': mc_smoe.rank_of(c['H'], c['W'], c['parameter_ratio'])})
  assert rank == c['rank']
  u, v, s = mc_smoe.split(jnp.asarray(case['weight'].T), rank)
  case.assert_close('low_rank', (u @ v).T)
  case.assert_close('residual', s.T)
  case.assert_close('singular_values', np.linalg.svd(case['weight'], compute_uv=False))
  x, rows = case['x'], case['kept_rows'] > 0
  case.assert_close('y', x @ np.asarray(u @ v + s))
  case.assert_close('y_rows_kept', x @ np.asarray(u @ v + jnp.where(rows, s, 0)))


def _schedule(c):
  """(before, after) of the reference's numbers of warm-ups."""
  return c['initial_warmup'] * c['warmup_steps'], c['final_warmup'] * c['warmup_steps']


def kept_fraction_schedule(case):
  c = case.config
  before, after = _schedule(c)
  step, total = case['step'].astype(np.float64), c['total_steps']
  case.assert_close('kept_fraction', row_pruning.share(step, total, c['final_threshold'], before, after,
                                                       c['initial_threshold']))
  case.assert_close('mask_applied', row_pruning.due(step, total, before, after, c['deltaT']))


def row_pruning_steps(case):
  c = case.config
  before, after = _schedule(c)
  case.option('beta2', {1: None})                                    # importance alone, no uncertainty
  names, numbers = range(len(c['shapes'])), case['step']
  stays = lambda grads, state, params, rate, moves=True: (params, state)
  still = optimizers.Optimizer(lambda params: {}, stays, {})
  pruner = row_pruning.around(still, {}, 'case', c['total_steps'], kept=c['final_threshold'], before=before,
                              after=after, every=c['deltaT'], memory=c['beta1'],
                              initial=c['initial_threshold'])
  turn = lambda w: jnp.asarray(np.swapaxes(w, -1, -2))
  params, grads = ({i: turn(case[f'{kind}_{i}']) for i in names} for kind in ('w0', 'grad'))
  state = pruner.init(params)
  share = row_pruning.share(numbers.astype(np.float64), c['total_steps'], c['final_threshold'], before, after,
                            c['initial_threshold'])
  case.assert_close('kept_fraction', share)
  due = row_pruning.due(numbers, c['total_steps'], before, after, c['deltaT'])
  assert (numbers == c['first_step'] + np.arange(len(numbers))).all()
  for t, step in enumerate(numbers.tolist()):
    average = [state['importance'][i] for i in names]
    for i in names:
      np.testing.assert_allclose(average[i].T, case[f'importance_{i}'][t], rtol=1e-6, atol=1e-6)
    widths = [a.shape[-2] for a in average]
    number = row_pruning.smallest([a.size for a in average], widths, share[t])
    limit = row_pruning.threshold([a.mean(-2) for a in average], widths, number)
    wanted = case['mask_threshold'][t]
    assert math.isnan(wanted) != due[t]
    if due[t]:
      np.testing.assert_allclose(limit, wanted, rtol=1e-6, atol=1e-6)
    params, state = _update(pruner)({i: grads[i][t] for i in names}, state, params, step)
    for i in names:
      w = case[f'w_{i}'][t]
      np.testing.assert_array_equal(params[i].T == 0, w == 0)
      np.testing.assert_allclose(params[i].T, w, rtol=1e-6, atol=1e-6)


def _update(pruner):
  return lambda grads, state, params, step: pruner.update(grads, state, params, 0.0, step - 1)
