"""Checks of Wanda and OWL as STUN uses them (arXiv:2409.06211). Matrices are those of torch, [out,in]."""

import jax.numpy as jnp
import numpy as np

from stmoe.surgery import wanda


def score_and_mask(case):
  c, x = case.config, np.float64(case['x'])
  assert sum(c['tokens_per_call']) == len(x)
  squares = (x ** 2).sum(0)[None]                                    # of one expert
  calls = np.array([c['calls']])
  case.assert_close('scaler_row', (squares / np.maximum(calls, 1))[0])
  w = jnp.asarray(case['weight'].T)[None]
  score = wanda.scores(w, squares, calls)
  case.assert_close('score', score[0].T)
  n, m = c['n_m'] or (None, None)
  gone = wanda.pruned(score, n / m if m else c['sparsity_ratio'], m)[0] & (c['calls'] > 0)
  case.assert_close('pruned_mask', gone.T.astype(np.int8))
  case.assert_close('pruned_weight', jnp.where(gone, 0, w[0]).T, like='score')


def owl_layer_ratio(case):
  c = case.config
  percent = [wanda.outliers([jnp.asarray(layer)], c['Hyper_m']) for layer in case['metrics']]
  case.assert_close('outlier_percent', percent)
  case.assert_close('layer_sparsity', 1 - wanda.densities(np.array(percent), 1 - c['sparsity'], c['Lamda']))
