"""Checks of RMoE: a stack of sparse layers around one recurrence, its pooled balance loss and gradients."""

from flax import nnx
import jax
import jax.numpy as jnp
import models_hf
import numpy as np

from stmoe.core import assignment
from stmoe.core.units import recurrent
from stmoe.parts import stack

# Torch's names of the gates, in the order of ours.
GATES = dict(gru=('ir', 'iz', 'in'), rnn=('in',), lstm=('ii', 'if', 'ig', 'io'))


def router_stack(case):
  c = case.config
  for name, only in (('dropless', True), ('h0', 'zeros')):
    case.option(name, {only: None})
  cell = case.option('cell', {name: name for name in GATES if name in recurrent.CELLS})
  layers, together = _layers(case, cell)
  ctx = models_hf.context(jnp.zeros((c['B'], c['S']), jnp.int32))

  def loss(layers, x, of_balance):
    reports, balance = [], 0.0
    carry = layers.init_carry(x)
    for unit in layers.segments[0]:
      layer = layers.lent(unit.blocks[0].layer)
      group = lambda a: a.reshape(1, -1, *a.shape[2:])
      routed = layer.router(group(x), ctx.each(group), jax.tree.map(group, carry))
      y, aux, carry = layer(x, ctx, carry)
      x = x + y
      balance += aux.losses['balance'] / c['L']
      reports.append((carry['rmoe'], y, routed.assignment))
    objective = balance if of_balance else jnp.sum(x * case['upstream'])
    return objective, (x, balance, reports)

  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), static_argnums=2)
  (grads, dx), (final, balance, reports) = run(layers, jnp.asarray(case['x']), False)
  case.assert_close('final', final), case.assert_close('aux_loss', balance)
  case.assert_close('grad_x', dx)
  # Of the balance loss alone.
  (of_balance, _), _ = run(layers, jnp.asarray(case['x']), True)
  case.assert_close('grad_w_proj_l0_aux', of_balance.segments[0][0].blocks[0].layer.router.a[...].T)
  for number, (unit, d_unit, report) in enumerate(zip(layers.segments[0], grads.segments[0], reports)):
    _layer(case, number, unit.blocks[0].layer.router, d_unit.blocks[0].layer.router, *report, together)
  recurrence = grads.tied['rmoe'].recurrence
  for name, value in _torch(cell, recurrence).items():
    _gradient(case, f'grad_cell_{name}', value)


def _layers(case, cell):
  """(stack of L sparse layers with the weights of `case`, function that puts equal experts together)."""
  c = case.config
  router = dict(name='rmoe', num_experts=c['E'], k=c['k'], width=c['P'], cell=cell, normalize_single=True)
  block = dict(layer='moe', attention=False, executor='einsum', group_size=c['B'] * c['S'], router=router,
               experts=dict(name='glu', d_ff=c['F'], activation='silu'))
  layers = stack.Stack(c['D'], name='decoder', pattern=(('m', c['L']),), blocks=dict(m=block),
                       scan_layers=False, rngs=nnx.Rngs(0))
  for number, unit in enumerate(layers.segments[0]):
    layer = unit.blocks[0].layer
    _set(layer.router.a, case[f'w_proj_{number}'].T), _set(layer.router.w, case[f'w_gate_{number}'].T)
    for ours, theirs in (('wi', 'wi'), ('wg', 'wu'), ('wo', 'wo')):
      _set(getattr(layer.experts, ours), case[f'{theirs}_{number}'].swapaxes(1, 2))
  recurrence = layers.tied['rmoe'].recurrence
  for ours, side in (('w', 'i'), ('v', 'h')):
    gates = [f'{side}{gate[1:]}' for gate in GATES[cell]]
    _set(getattr(recurrence, ours), np.concatenate([case[f'cell_weight_{gate}'].T for gate in gates], axis=1))
    bias = dict(w='b', v='c')[ours]
    _set(getattr(recurrence, bias), np.concatenate([case[f'cell_bias_{gate}'] for gate in gates]))
  # Experts 0 and 1 are the same there: whichever of the two wins.
  tied = case.option('tied_gate_rows', {True: True, False: False}, False)
  return layers, lambda rows: np.concatenate([rows[:1] + rows[1:2], rows[2:]]) if tied else rows


def _layer(case, number, router, grads, state, y, a, together):
  """Compares what a layer made, and its gradients."""
  case.assert_close(f'h_{number}', state.reshape(-1, state.shape[-1]))
  case.assert_close(f'logits_{number}', state.reshape(-1, state.shape[-1]) @ router.w[...])
  case.assert_close(f'y_{number}', y)
  weights = np.asarray(assignment.masks(a)[1].sum(-1)[0])            # [B*S, E]
  expected = np.zeros_like(weights)
  np.put_along_axis(expected, case[f'topk_i_{number}'], case[f'topk_w_{number}'], axis=1)
  chosen = lambda weights: together((weights > 0).T.astype(int))
  np.testing.assert_array_equal(chosen(weights), chosen(expected))
  rtol, atol = case.limits(f'topk_w_{number}')
  np.testing.assert_allclose(together(weights.T), together(expected.T), rtol=rtol, atol=atol)
  _gradient(case, f'grad_w_proj_{number}', grads.a[...].T)
  _gradient(case, f'grad_w_gate_{number}', grads.w[...].T, together)


def _gradient(case, name, value, together=lambda rows: rows):
  """Compares a gradient. With k = 1 the gate is 1: what the reference has there is the round-off of g / g."""
  rtol, atol = case.limits(name)
  if case.config['k'] == 1:
    atol = 1e-6 * float(np.abs(case['grad_x']).max())
  np.testing.assert_allclose(together(np.asarray(value)), together(case[name]), rtol=rtol, atol=atol)


def _torch(cell, recurrence):
  """Dict 'weight_ir' -> array, of the arrays of a recurrence as torch has them."""
  found = {}
  for matrix, bias, side in (('w', 'b', 'i'), ('v', 'c', 'h')):
    parts = [jnp.split(getattr(recurrence, name)[...], len(GATES[cell]), axis=-1) for name in (matrix, bias)]
    for gate, w, b in zip(GATES[cell], *parts):
      found |= {f'weight_{side}{gate[1:]}': w.T, f'bias_{side}{gate[1:]}': b}
  return found


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable[...] = jnp.asarray(value)
