"""How alike the experts of a layer are: cosines between their weights."""

import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.surgery import layout


def experts(params: dict, names: dict) -> dict[str, jax.Array]:
  """Returns dict layer name -> f32[E,E]: cosines between the weights of the experts of every sparse layer.

  The weights of an expert count as one vector, without weights that all experts share. Copies have 1;
  independent experts nearly 0.

  Args:
    params: pure dict of a model, scanned or not.
    names:  tree like `params` of logical axes (`axes.names_of`); arrays of experts have the axis `expert`.
  """
  weights: dict[str, list[jax.Array]] = {}
  # An array of no experts keeps its first axis, which may be that of layers, and no numbers.
  empty = lambda leaf: leaf.reshape(*leaf.shape[:1], -1)[..., :0]
  of_experts = jax.tree.map(lambda names, leaf: leaf if 'expert' in names else empty(leaf), names, params,
                            is_leaf=axes.is_names)

  def collect(path, leaf):
    if 'experts' in path and 'layers' in path and leaf.size:
      stack, number = path[path.index('layers') - 1], path[path.index('layers') + 1]
      weights.setdefault(f'{stack}_{number:02d}', []).append(leaf.reshape(leaf.shape[0], -1))  # [E, weights]

  layout.visit(layout.unroll(of_experts) if layout.is_scanned(of_experts) else of_experts, collect)
  return {name: cosines(jnp.concatenate(leaves, axis=1)) for name, leaves in sorted(weights.items())}


def cosines(x):
  """Returns f32[E,E], the cosines between the rows of x [E,N]; 0 for a row of zeros."""
  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  unit = x / jnp.where(norm > 0, norm, 1)
  return jax.lax.dot(unit, unit.T, precision='highest')
