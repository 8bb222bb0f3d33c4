"""Mixture-of-Students of PR-MoE: a student with fewer blocks, begun with blocks of its teacher.

DeepSpeed-MoE (arXiv:2201.05596) has 21 of 24 layers. The loss of its students is `targets/pr_moe.py`.
"""

import math

from flax import nnx
import ml_collections
import numpy as np

from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import layout
from stmoe.surgery import sparse

LONGEST = 6                              # blocks of a repeated unit


def _even(number, most):
  return np.floor((np.arange(most) + 0.5) * number / most).astype(int)


# Which `most` of `number` blocks stay, in order.
STAY = {'even': _even, 'first': lambda number, most: np.arange(most),
        'last': lambda number, most: np.arange(number - most, number)}


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.875, stay: ranges.Choice(*STAY) = 'even') -> tuple[dict, dict]:
  """Returns (params, changes) with share `keep` of the blocks of every stack; see `sparse`.

  Blocks of each letter go in proportion, so that a pyramid stays one.

  Args:
    stay: which of a letter's blocks: evenly spaced ones, the first or the last.
  Differs: which layers go, and whether a student begins with its teacher's, is not stated (u).
  """
  if keep == 1.0:
    return params, {}
  model = sparse.abstract(config)
  paths = {id(module): path for path, module in nnx.iter_modules(model)}
  made = aside.Made()
  changes: dict[str, object] = {}
  for stack in sparse.stacks(model):
    letters = ''.join(unit * repeats for unit, repeats in stack.pattern)
    numbers, place = kept(letters, keep, stay), (*paths[id(stack)], 'layers')
    blocks = layout.at(params, place)
    made[place] = {new: blocks[old] for new, old in enumerate(numbers)}
    field = stack.name if stack.name in config.model else 'layers'
    changes[f'model.{field}'] = pattern(''.join(letters[number] for number in numbers))
  return sparse.replaced(params, made), changes


def kept(letters: str, keep: float, stay: str = 'even') -> list[int]:
  """Returns the numbers of the blocks that stay of a stack of `letters`, in order.

  Every letter has its share, to whole numbers by the largest remainders, and at least one block.

  >>> kept('dmdmdm', 0.5), kept('dmdmdm', 0.5, 'first'), kept('dddm', 0.5)
  ([0, 3, 4], [0, 1, 2], [1, 3])
  """
  counts = {letter: letters.count(letter) for letter in dict.fromkeys(letters)}
  quotas = {letter: keep * count for letter, count in counts.items()}
  numbers = {letter: max(math.floor(quota), 1) for letter, quota in quotas.items()}
  missing = sparse.share(len(letters), keep) - sum(numbers.values())
  for letter in sorted(quotas, key=lambda letter: numbers[letter] - quotas[letter])[:max(missing, 0)]:
    numbers[letter] += 1
  places = {letter: [place for place, other in enumerate(letters) if other == letter] for letter in counts}
  return sorted(places[letter][i] for letter, most in numbers.items()
                for i in STAY[stay](counts[letter], most))


def pattern(letters: str) -> tuple:
  """Returns (unit, repeats) pairs of `letters`, the longest repetition first; see `parts/stack.py`.

  >>> pattern('dmdmdd')
  (('dm', 2), ('d', 2))
  """
  pairs = []
  while letters:
    found = []
    for size in range(1, min(LONGEST, len(letters)) + 1):
      repeats = 1
      while letters[:size] == letters[repeats * size:(repeats + 1) * size]:
        repeats += 1
      found.append((size * repeats if repeats > 1 else 1, -size, repeats))
    _, size, repeats = max(found)
    size = 1 if repeats == 1 else -size
    pairs.append((letters[:size], repeats))
    letters = letters[size * repeats:]
  return tuple(pairs)
