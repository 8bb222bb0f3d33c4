"""Checks of EAQuant (arXiv:2506.13329): scales of inputs and hidden channels, balance, the router's grid.

Matrices of the reference are [out,in]; ours are [in,out].
"""

import jax.numpy as jnp
import numpy as np

from stmoe.derive.calibration import items
from stmoe.surgery import ea_quant
from stmoe.surgery import smoothing


def smoothing_aggregation(case):
  c, gain = case.config, case['norm_gain']
  assert c['clamp'] == smoothing.LEAST
  number, shared = c['E'], c['shared_experts']
  router, gate, up = (case[name].swapaxes(-1, -2) for name in ('router', 'gate_proj', 'up_proj'))
  reads = lambda w: np.abs(w).max(-1)
  weights = np.concatenate([reads(router)[None], np.maximum(reads(gate), reads(up))])          # [1 + E, D]
  spreads = np.array([smoothing.spread(router), *np.maximum(smoothing.spread(gate), smoothing.spread(up))])
  case.assert_close('weight_score', spreads)
  scales = smoothing.of_consumer(case['act_max'], weights, c['alpha'])
  case.assert_close('consumer_scale', scales)
  experts, tokens = slice(1, 1 + number), case['token_counts']
  shares = smoothing.shares_of(tokens[experts], tokens[0] * c['k'], spreads[experts],
                               case['router_mean_prob'])
  always = tuple(scales[1 + number:1 + number + shared])
  for mode in c['modes']:
    also = always + (scales[0],) * mode.endswith('_gate')
    case.assert_close(f'merged_{mode}', smoothing.merged(scales[experts], mode.removesuffix('_gate'), shares,
                                                         also))
  scale = smoothing.merged(scales[experts], 'max', shares, always)
  case.assert_close('smoothed_gain', gain / scale)
  case.assert_close('smoothed_router', (router * scale[:, None]).T)
  case.assert_close('smoothed_gate_proj_0', (gate[0] * scale[:, None]).T)
  x = case['normalised_input'] * gain
  np.testing.assert_allclose(x / scale @ (gate[0] * scale[:, None]), x @ gate[0], rtol=1e-4, atol=1e-4)


def down_projection_smoothing(case):
  fields = {name: case.config[name] for name in ('quantile', 'fence', 'rate')}
  scale = smoothing.of_units(case['channel_max'], case['channel_min'], **fields)
  case.assert_close('scale', scale)
  case.assert_close('up_after', case['up_before'] / scale[:, None])
  case.assert_close('down_after', case['down_before'] * scale)


def calibration_balance(case):
  """A sequence is stored for an expert where one of its tokens is selected."""
  selected, number = case['selected'], case.config['E']
  taken = np.zeros((*selected.shape[:2], number), np.float32)
  np.put_along_axis(taken, selected, 1, axis=2)
  even = np.asarray(items.balanced(jnp.asarray(taken), case.config['expert_token_num']))
  case.assert_close('collected', np.where(even.sum(1) > 0, taken.sum(1), 0).astype(np.int32))
  case.assert_close('used_tokens', even.sum((0, 1)).astype(np.int32))


PARTS = {'kl_top0': 'kl', 'kl_top100': 'kl_all', 'mse_linear': 'linear', 'mse_tensor': 'tensor'}


def _parts(name):
  """The parts of the loss that the reference calls 'mse_linear_kl_top0' or alike."""
  found = [ours for theirs, ours in PARTS.items() if theirs in name]
  assert found and sum(len(theirs) for theirs in PARTS if theirs in name) + len(found) - 1 == len(name), name
  return tuple(found)


def router_quantiser(case):
  c, w, x = case.config, jnp.asarray(case['router']), jnp.asarray(case['x'])
  assert case.option('candidates', {'ratio 0.35 + i*0.65/100, i=0..100': True})
  symmetric, bits = case.option('symmetric', {True: True, False: False}), c['n_bits']
  fields = dict(bits=bits, k=c['top_k'], symmetric=symmetric)
  # Codes from 0 on; symmetric ones of the reference begin below it, where the range was searched.
  offset = lambda searched: (2 ** (bits - 1) if searched else 1) if symmetric else 0
  for name in case.names('ratio_'):
    loss = name.removeprefix('ratio_')
    found = ea_quant.searched(w, x, parts=_parts(loss), **fields)
    scores = np.asarray(found['scores'])
    if f'scores_{loss}' in case:
      case.assert_close(f'scores_{loss}', scores[:, 0] if case[f'scores_{loss}'].ndim == 1 else scores)
    # Where two candidates are equal up to round-off the reference may have taken the other.
    theirs = np.abs(ea_quant.CANDIDATES[:, None] - case[name]).argmin(0)                       # [E]
    np.testing.assert_allclose(ea_quant.CANDIDATES[theirs], case[name], rtol=1e-5)
    rows = np.arange(len(theirs))
    np.testing.assert_allclose(scores[theirs, rows], scores.min(0), rtol=0, atol=1e-6)
    same = np.asarray(found['ratio']) == np.float32(ea_quant.CANDIDATES[theirs])
    assert same.mean() > 0.5
    for array, value in (('scale', found['scale']), ('zero', found['zero'] - offset(True)),
                         ('dequant', found['values'])):
      ours, wanted = np.asarray(value), case[f'{array}_{loss}']
      np.testing.assert_allclose(ours[same], wanted[same], rtol=1e-5, atol=1e-5)
  whole = ea_quant.searched(w, None, parts=(), **fields)
  case.assert_close('scale_minmax', whole['scale'])
  case.assert_close('zero_minmax', whole['zero'] - offset(False))
