"""A baseline of merging: groups of experts by chance, and for each group its average by usage.

Nothing is aligned, and nothing says that the experts of a group are alike. Baselines that drop experts are in
`prune`. `merge:weights=head` sends the tokens of dropped experts to the nearest expert that stays.
"""

import zlib

import ml_collections
import numpy as np

from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import fewer
from stmoe.surgery import merge
from stmoe.surgery import sparse


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, weights: ranges.Choice('usage', 'uniform') = 'usage',
            seed: ranges.Seed = 0) -> tuple[dict, dict]:
  """Returns (params, changes) with one expert for each of as many groups as `keep` leaves; see `sparse`.

  The router stays as it is, inside of `remap`. Groups are as large as each other, as far as that is possible.

  Args:
    weights: of members: their 'usage', or 'uniform', which needs no data.
    seed:    of the groups; a layer has groups of its own.
  """
  layers = sparse.found(config)
  numbers = sparse.kept(layers, keep)
  statistics = calibration('load') if weights == 'usage' else {}
  replaced = aside.Made()
  for layer in layers:
    used = np.ones(layer.num_experts)
    if weights == 'usage':
      used = merge.usage(statistics[layer.name]['load'][:layer.num_experts])
    members = groups(layer.num_experts, numbers[layer.where], [seed, zlib.crc32(layer.name.encode())])
    parts = fewer.shares(members, used)
    replaced |= {(*layer.path, 'experts', *path): fewer.mixed(parts, array)
                 for path, array in layer.owned(params).items()}
    replaced[(*layer.path, 'router')] = dict(inner=sparse.router(layer, params), table=merge.table(members))
  return sparse.replaced(params, replaced), merge.remapped(config, numbers)


def groups(experts: int, number: int, seed: list[int]) -> list[list[int]]:
  """Returns `number` random groups of so many experts, in the order of their first members.

  >>> [len(group) for group in groups(5, 2, [0])], sorted(sum(groups(5, 2, [0]), []))
  ([2, 3], [0, 1, 2, 3, 4])
  """
  order = np.random.default_rng(seed).permutation(experts)
  return sorted(sorted(part.tolist()) for part in np.array_split(order, number))
