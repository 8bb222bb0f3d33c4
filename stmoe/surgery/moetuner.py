"""MoETuner's placement put to use: experts are renumbered, so that devices hold those that it gives them.

Devices that share experts hold equally many, one after the other. So the experts of the placement's first
device come first, and what the router has of experts moves alike. The model computes what it did before
(arXiv:2502.06643).

  stmoe place routes.npz --devices 8 --output placement.json
  stmoe compress runs/a moetuner:placement=placement.json --workdir runs/placed
"""

import ml_collections
import numpy as np

from stmoe import errors
from stmoe import files
from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import fewer
from stmoe.surgery import sparse


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 1.0, placement: ranges.Text = '') -> tuple[dict, dict]:
  """Returns (params, changes) with the experts of every layer in the order of their devices; see `sparse`.

  Args:
    keep:      1.0, as no expert goes.
    placement: a file of `stmoe place --output`; '' = every expert keeps its number.
  """
  layers = sparse.found(config)
  if keep != 1.0:
    raise errors.UserError(f'keep={keep}: experts get other numbers, and none goes; nearest: keep=1.0')
  made = aside.Made()
  for layer, devices in zip(layers, _placed(layers, placement)) if placement else ():
    order = np.argsort(devices, kind='stable')
    fewer.check(layer, params, layer.num_experts, keep)
    made |= {(*layer.path, 'experts', *path): array[order] for path, array in layer.owned(params).items()}
    made |= fewer.cut(layer, fewer.without_one(layer, config), params, order)
  return sparse.replaced(params, made), {}


def _placed(layers, path):
  """For each layer i[E], the device of each expert as the file at `path` says."""
  stacks, found = files.read_json(path), []
  for layer in layers:
    stack = layer.name.rpartition('_')[0]
    here = [other.name for other in layers if other.name.rpartition('_')[0] == stack]
    rows = stacks.get(stack)
    of = rows[here.index(layer.name)] if isinstance(rows, list) and len(rows) == len(here) else None
    if not _fits(of, layer.num_experts):
      raise errors.UserError(f'{path} has no devices of the {layer.num_experts} experts of {layer.name}, '
                             'with equally many on each; nearest: stmoe place of a recording of this run')
    found.append(of)
  return found


def _fits(devices, experts):
  """Whether `devices` is a list of the devices of so many experts, with equally many on each device."""
  if not isinstance(devices, list) or any(type(device) is not int for device in devices):
    return False
  return len(devices) == experts and len({devices.count(device) for device in devices}) == 1
