"""How alike the experts of a layer are: cosines between their weights."""

import jax
import jax.numpy as jnp

from stmoe.surgery import layout


def experts(params):
  """Returns dict layer name -> f32[E,E]: cosines between the weights of the experts of every sparse layer.

  All weights of an expert count as one vector. Copies have 1; independent ones nearly 0.

  Args:
    params: pure dict of a model, scanned or not.
  """
  found = {}

  def collect(path, leaf):
    if 'experts' in path and 'layers' in path:
      stack, number = path[path.index('layers') - 1], path[path.index('layers') + 1]
      found.setdefault(f'{stack}_{number:02d}', []).append(leaf.reshape(leaf.shape[0], -1))   # [E, weights]

  layout.visit(layout.unroll(params) if layout.is_scanned(params) else params, collect)
  return {name: cosines(jnp.concatenate(leaves, axis=1)) for name, leaves in sorted(found.items())}


def cosines(x):
  """Returns f32[E,E], the cosines between the rows of x [E,N]; of a row of zeros 0."""
  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  unit = x / jnp.where(norm > 0, norm, 1)
  return jax.lax.dot(unit, unit.T, precision='highest')
