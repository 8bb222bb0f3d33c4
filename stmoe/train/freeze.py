"""Which parameters train: all of them, or a part of the model; the others never change and cost no slots.

The parts of ST-MoE's fine-tuning (arXiv:2202.08906, section 5.4), told apart by names on a parameter's path:
  expert      what sparse layers have: experts and router
  non_expert  everything else
  attention   self- and cross-attention, with the norms before them
  ffn         dense and sparse feed-forward layers, with the norms before them
"""

import jax

from stmoe import axes
from stmoe import errors

SPARSE = ('experts', 'router')
PARTS = {
    'all': lambda path: True,
    'expert': lambda path: any(name in SPARSE for name in path),
    'non_expert': lambda path: not any(name in SPARSE for name in path),
    'attention': lambda path: any(str(name).startswith(('attention', 'cross')) for name in path),
    'ffn': lambda path: any(name in ('layer', 'layer_norm') for name in path),
}


def chosen(names, part):
  """Returns the set of paths (tuples of keys) of the parameters that train.

  Args:
    names: nested dict of logical axis names, like the parameters.
    part:  a key of PARTS.
  """
  if part not in PARTS:
    raise errors.UserError(f'train.trainable={part!r}{errors.nearest(part, PARTS)} (there are: '
                           f'{", ".join(PARTS)})')
  paths = [tuple(entry.key for entry in path)
           for path, _ in jax.tree.leaves_with_path(names, is_leaf=axes.is_names)]
  found = {path for path in paths if PARTS[part](path)}
  if not found:
    raise errors.UserError(f'train.trainable={part!r}: the model has no such parameters; nearest: all')
  return found


def take(tree, paths):
  """Returns the nested dict of those leaves of `tree` that are at `paths`; empty dicts are left out."""
  found = {}
  for path in paths:
    leaf, node = tree, found
    for key in path[:-1]:
      leaf, node = leaf[key], node.setdefault(key, {})
    node[path[-1]] = leaf[path[-1]]
  return found


def put(tree, part):
  """Returns the nested dict `tree` with the leaves that the nested dict `part` has from there."""
  if not isinstance(part, dict):
    return part
  return {key: put(inner, part[key]) if key in part else inner for key, inner in tree.items()}
