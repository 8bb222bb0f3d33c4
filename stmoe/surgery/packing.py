"""Experts of a layer as the arrays of a packed bank (`experts/wrappers/packed.py`)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from stmoe import errors
from stmoe.core.units import codes
from stmoe.surgery import layout
from stmoe.surgery import sparse


def fields_of(config: ml_collections.ConfigDict, layer: sparse.Layer, fields: dict) -> dict:
  """Returns the group of fields of a packed bank around that of `layer`; raises UserError if it is packed."""
  inner = sparse.section(config, f'{layer.where}.experts').to_dict()
  if hasattr(layer.module.experts, 'opened'):
    raise errors.UserError(f'{layer.where}.experts is {inner["name"]}: these experts are codes already; '
                           'nearest: the run that it was made of')
  return dict(name='packed', inner=inner) | fields


def arrays(layer: sparse.Layer, packed: sparse.Layer, bank: Mapping[tuple, jax.Array], bits: int,
           **fields) -> dict[tuple, jax.Array]:
  """Returns dict path -> array of the bank of layer `packed`, from `bank`, dict path -> array of `layer`.

  One array after the other.

  Args:
    bits, fields: of `codes.encode`.
  """
  named, made = packed.axes('experts'), {}
  for path, array in bank.items():
    name = '_'.join(map(str, path))
    if ('kept', name) in named:
      made[(*layer.path, 'experts', 'kept', name)] = array
      continue
    for part, stored in codes.encode(jnp.asarray(array), bits, **fields).items():
      made[(*layer.path, 'experts', 'codes', name, part)] = stored
  return made


def replaced(params: dict, layers: list[sparse.Layer], made: dict[tuple, object]) -> dict:
  """Returns nested dict `params` with the arrays `made`, and no others, in the banks of `layers`."""
  without = sparse.replaced(params, {(*layer.path, 'experts'): None for layer in layers})
  for layer in layers:
    layout.put(without, (*layer.path, 'experts'), {})
  return sparse.replaced(without, made)
