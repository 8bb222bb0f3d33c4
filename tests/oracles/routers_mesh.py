"""Mesh-TensorFlow's gatings in our terms; its scopes of f and P are translated by the checks."""

import jax
import jax.numpy as jnp

from stmoe.core import assignment


def compare(case, route, reference_loss):
  """Dispatch, combine and balance loss.

  Args:
    route:          (logits, mask, capacity) -> (Assignment, Aux).
    reference_loss: (logits f32[G,S,E], mask bool[G,S], aux) -> f32[].
  """
  mask, capacity = case['nonpadding'] > 0, case.config['expert_capacity']

  @jax.jit
  def f(x, w):
    logits = jnp.einsum('gsd,de->gse', x, w, precision='highest')
    a, aux = route(logits, mask, capacity)
    dispatch, combine = assignment.masks(a)
    return dict(dispatch_tensor=dispatch.astype(jnp.float32), combine_tensor=combine,
                loss=reference_loss(logits, mask, aux))

  for name, value in f(case['inputs'], case['router_kernel']).items():
    case.assert_close(name, value)
