"""Checks of Sub-MoE (arXiv:2506.23266): the merge in the joint subspace of a group, whitened or not."""

import numpy as np

from stmoe.surgery import fewer
from stmoe.surgery import sub_moe


def subspace_merge(case):
  c, w = case.config, case['W']                                      # [n, a, b]
  whitened = case.option('whitened', {True: True, False: False})
  moments = [s @ s.T for s in case['S']] if whitened else None
  axes, values = sub_moe.subspace(list(w), moments)
  case.assert_close('singular_values', values[:len(case['singular_values'])])
  shares = fewer.shares([list(range(c['members']))], case['f'])[0]
  mean = np.einsum('n,nab->ab', shares, w)
  case.assert_close('frequency_average', mean)
  case.assert_close('merged_full', axes @ axes.T @ mean)
  axes = axes[:, :c['rank']]
  case.assert_close('merged_rank', axes @ axes.T @ mean)
