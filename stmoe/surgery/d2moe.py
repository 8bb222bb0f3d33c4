"""D2MoE: experts whose weights are nested codes; hot experts have more bits in memory, large gates read more.

D2MoE (arXiv:2504.15299). A code of b bits is the beginning of one of b + 1 bits, so one store of planes of
bits serves every width (`experts/wrappers/packed.py`). Each layer has a budget of planes in memory. Planes
are loaded for the hottest experts first. Of the planes in memory a token reads as many as its gate asks for
(`routers/wrappers/d2moe.py`). Not the delta decompression of the same name.

Differs: a run holds all planes, and a table says which are in memory; loading, and its overlap with computing
  (HEBF), is a matter of time, which nothing here simulates. How gates choose bits is our reading (u).
"""

import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import errors
from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import packing
from stmoe.surgery import sparse

FLOAT = 32                               # bits of a weight that is no code


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.09375, bits: ranges.Whole(1, 8) = 4, least: ranges.Whole(1, 8) = 2,
            group: ranges.Count | None = None) -> tuple[dict, dict]:
  """Returns (params, changes) with nested codes, and a width for every expert and token; see `sparse`.

  Args:
    keep:  planes in memory over the 32 bits of a weight, on average over the experts of a layer: 0.09375 is
      3 bits. At 1.0 nothing changes.
    bits:  of whole codes; least: of the shortest codes, which every expert has in memory.
    group: inputs of an output that have a scale in common; None = all.
  """
  if keep == 1.0:
    return params, {}
  mean = _mean(keep, least, bits)
  layers, grid = sparse.found(config), dict(group=group, kind='nested')
  widths = tuple(range(least, bits + 1))
  changes: dict[str, object] = {}
  for layer in layers:
    inner, codes = sparse.section(config, f'{layer.where}.router').to_dict(), dict(bits=bits, widths=widths)
    changes[f'{layer.where}.experts'] = packing.fields_of(config, layer, codes | grid)
    changes[f'{layer.where}.router'] = dict(name='d2moe', widths=widths, inner=inner)
  seen = calibration('load')
  made = aside.Made()
  for layer, packed in zip(layers, sparse.found(sparse.changed(config, changes))):
    made |= packing.arrays(layer, packed, layer.arrays(params, 'experts'), bits, **grid)
    planes = loaded(seen[layer.name]['load'][:layer.num_experts], mean, least, bits)
    made[(*layer.path, 'router')] = dict(inner=sparse.router(layer, params),
                                         most=jnp.asarray(planes - least, jnp.int32))
  return packing.replaced(params, layers, made), changes


def _mean(keep, least, bits):
  """The bits of a weight that are in memory, on average."""
  if least > bits:
    raise errors.UserError(f'least={least} bits of bits={bits}; nearest: least={bits}')
  mean = keep * FLOAT
  if not least <= mean <= bits:
    raise errors.UserError(f'keep={keep}: {mean:g} bits of {FLOAT}, and codes have {least} to {bits}; '
                           f'nearest: keep={min(max(mean, least), bits) / FLOAT:g}')
  return mean


def loaded(usage: np.ndarray, mean: float, least: int, bits: int) -> np.ndarray:
  """Returns i[E], planes in memory: `least` of every expert, then all of the hottest ones, `mean` on average.

  Args:
    usage: f[E], of equal experts the first is hotter.

  >>> loaded(np.array([1.0, 5.0, 3.0]), 3.0, 2, 4).tolist()
  [2, 4, 3]
  """
  planes = np.full(len(usage), least)
  left = int(mean * len(usage) + 1e-6) - planes.sum()
  for expert in np.argsort(-np.asarray(usage), kind='stable'):
    more = min(bits - least, left)
    planes[expert] += more
    left -= more
  return planes
