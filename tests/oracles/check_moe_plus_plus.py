"""Checks of MoE++: one layer, its gate with the residual of the layer before, its virtual experts."""

import re

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe import lookup
from stmoe.routers import moe_plus_plus


def layer(case):
  c = case.config
  made = _layer(case)
  ctx = models_hf.context(np.zeros((1, c['T']), np.int32))
  before = jnp.asarray(case['gate_residual'] if 'gate_residual' in case else np.zeros((c['T'], c['E'])))

  @jax.jit
  def run(made, x, before):
    y, _, after = made(x, ctx, {made.memory: before[None]})
    added = before @ made.residual[...].T
    routed = made.moe.router(x, ctx.replace(given={moe_plus_plus.ADDED: added[None]}), {})
    return y, after[made.memory][0], routed.assignment
  y, logits, a = run(made, jnp.asarray(case['x']), before)
  case.assert_close('output', y)
  case.assert_close('logits', logits)
  dense = jnp.zeros((c['T'], c['E']))
  case.assert_close('combine_weights', dense.at[a.token[0], a.expert[0]].set(a.weight[0]))
  case.assert_close('selected', dense.astype(jnp.int32).at[a.token[0], a.expert[0]].set(1))


def _layer(case):
  """The layer with the weights of `case`; real experts, constants, copy, zero is their order and ours."""
  c, constants = case.config, len(case['const_v'])
  two_layers = case.option('two_layer_gate', {True: True, False: False})
  gates = case.option('mixtral_gating', {True: 'chosen', False: 'others'})
  normed = case.option('logits_norm', {True: True, False: False})
  router = dict(name='moe_plus_plus', num_experts=c['E'] - constants - 2, k=c['k'], two_layers=two_layers,
                gates=gates, logit_std=c['gate_norm_std'] if normed else None)
  made = lookup.recipe('layer', dict(
      name='moe_plus_plus', router=router, num_constant=constants, executor='einsum',
      experts=dict(name='glu', d_ff=c['F'], activation='silu')))(c['D'], rngs=nnx.Rngs(0))
  made.scale = float(re.match(r'experts see ([\d.]+)\*x', c['input_scale']).group(1))
  _set(made.residual, case['gate_map'])
  if two_layers:
    _set(made.moe.router.w_in, case['wg0'].T), _set(made.moe.router.w, case['wg1'].T)
  else:
    _set(made.moe.router.w, case['wg'].T)
  for ours, theirs in (('wi', 'ffn_gate'), ('wg', 'ffn_up'), ('wo', 'ffn_down')):
    _set(getattr(made.moe.experts, ours), case[theirs].swapaxes(1, 2))
  for expert, v, w in zip(made.moe.virtual, case['const_v'], case['const_wg']):
    _set(expert.v, v), _set(expert.w, w.T)
  return made


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable[...] = jnp.asarray(value)
