"""Mesh-TensorFlow's gatings in our terms; its scopes of f and P are translated by the checks."""

import jax
import jax.numpy as jnp

from stmoe.core import assignment


def undrawn(case):
  """Fails where the reference chose first experts by chance: its draws are in no file.

  It changes the router's input in training only, and capacity, which differs there, is given.
  """
  train = case.config.get('train', False)
  changed = {} if train else dict(input_jitter=None, input_dropout=None)
  case.option('switch_policy', dict(argmax=None, **changed), 'argmax')


def uniform(case):
  """Returns the recorded draws f32[G,S,1] for second experts, or None where nothing is drawn."""
  if case.config['second_policy'] == 'random':
    return case['uniform'][..., None]                                # fails, naming it, where there are none
  return None


def compare(case, route, reference_loss):
  """Dispatch, combine and balance loss.

  Args:
    route:          (logits, mask, capacity) -> (Assignment, Aux).
    reference_loss: (logits f32[G,S,E], mask bool[G,S], aux) -> f32[].
  """
  config = case.config
  mask, capacity = case['nonpadding'] > 0, config['expert_capacity']
  z, microbatches = config.get('z_loss_coefficient') or 0.0, config.get('num_microbatches') or 1

  @jax.jit
  def f(x, w):
    logits = jnp.einsum('gsd,de->gse', x, w, precision='highest')
    a, aux = route(logits, mask, capacity)
    dispatch, combine = assignment.masks(a)
    return dict(dispatch_tensor=dispatch.astype(jnp.float32), combine_tensor=combine,
                loss=(reference_loss(logits, mask, aux) + z * aux.losses['z']) / microbatches)

  for name, value in f(case['inputs'], case['router_kernel']).items():
    case.assert_close(name, value)
