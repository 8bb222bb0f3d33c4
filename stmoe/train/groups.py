"""Which parameters train, and how: a section `groups` of a configuration names groups of them.

  c.groups = dict(router=dict(rate=0.1), expert=dict(clip=0.0), base=dict(where='rest', train=False))

`where` says which parameters: labels (see `modules.labels`) and patterns of paths, 'decoder/*/attention/*',
with commas between them, or 'rest', the parameters of no other group. Without `where` the group's name is the
label. A parameter is in one group at most. Parameters in no group train as optimizer and schedule say.

Without that section `train.trainable` names a part of the model, told apart by names on a parameter's path
(ST-MoE's fine-tuning, arXiv:2202.08906, section 5.4); other parts do not train:
  expert      what sparse layers have: experts and router
  non_expert  everything else
  attention   self- and cross-attention, with the norms before them
  ffn         dense and sparse feed-forward layers, with the norms before them
  adapter     what has that label, beside a base that does not train

What metrics tell of kinds of layers is another division, see `kinds`.
"""

import fnmatch
import functools
import re
import types
from typing import NamedTuple
import zlib

import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import ranges
from stmoe.train import optimizers
from stmoe.train import row_pruning

SPARSE, REST = ('experts', 'router'), 'rest'
PARTS = {
    'all': lambda path: True,
    'expert': lambda path: any(name in SPARSE for name in path),
    'non_expert': lambda path: not any(name in SPARSE for name in path),
    'attention': lambda path: any(str(name).startswith(('attention', 'cross')) for name in path),
    'ffn': lambda path: any(name in ('layer', 'layer_norm') for name in path),
}
LABELS = ('adapter',)                    # parts whose parameters have such a label
# Kinds of layers, beside those that are labels; a parameter is of the first that fits.
LABELLED = ('router', 'head', 'expert', 'adapter')
KINDS = {
    'norm': lambda path: any(str(name).endswith(('norm', 'norms')) for name in path),
    'attention': PARTS['attention'],
    'ffn': PARTS['ffn'],
    'embed': lambda path: path[0] in ('embed', 'positions', 'patches'),
    'rest': lambda path: True,
}


class Group(NamedTuple):
  """Parameters that train alike; fields as in `group_of`, `paths` are tuples of keys."""
  name: str
  paths: frozenset
  train: bool
  rate: float
  weight_decay: float | None
  clip: float | None
  every: int
  turn: tuple
  lasts: int
  masked: float
  pruned: dict | None
  proximal: float

  @property
  def alternates(self) -> bool:
    """Whether this group does not train in every step."""
    return self.turn[1] > self.lasts

  def begins(self, step: jax.Array) -> jax.Array:
    """Returns bool[]: whether a turn of this group begins with step `step` i32[]."""
    turn, turns = self.turn
    return (step % self.every == 0) & ((step // self.every - turn) % turns == 0)

  def due(self, step: jax.Array) -> jax.Array:
    """Returns bool[]: whether this group trains in step `step` i32[]."""
    turn, turns = self.turn
    return (step // self.every - turn) % turns < self.lasts


def group_of(name, paths, *, where: ranges.Text = '', train: ranges.Flag = True,
             rate: ranges.NonNegative = 1.0, weight_decay: ranges.NonNegative | None = None,
             clip: ranges.NonNegative | None = None, every: ranges.Count = 1,
             turn: ranges.Row(ranges.Natural, ranges.Count) = (0, 1), lasts: ranges.Count = 1,
             masked: ranges.Below1 = 0.0, pruned: ranges.Pruning | None = None,
             proximal: ranges.NonNegative = 0.0) -> Group:
  """Returns the Group of the parameters at `paths`; its fields in a configuration are these.

  Args:
    name:         of the group; '' for parameters that no group claims.
    where:        how the paths were selected; '' = by the name.
    train:        whether the parameters change at all; without it they have no slots in the optimizer.
    rate:         factor of the schedule's learning rate.
    weight_decay: in place of the optimizer's.
    clip:         limit of the norm of the group's own gradient; 0.0 = none. The gradient then counts for no
      other norm that is limited. None: the gradient counts for the norm that train.clip limits.
    every, turn:  with turn=(i, n) the group trains in the i-th of n turns, from 0, of `every` steps each. In
      the other turns neither the parameters nor their slots change.
    lasts:        turns in a row, from that one on, in which the group trains.
    masked:       probability that the gradient of a block's part of the group is 0 in a step (the gradient
      mask of MPOE, arXiv:2203.01104). The optimizer sees that 0, and its momentum still moves what is masked.
    pruned:       dict(kept, before, after) and what else `row_pruning.around` takes: rows of the group's
      matrices become 0 until the share `kept` is left (MC-SMoE, arXiv:2310.01334).
    proximal:     how strongly the group is held where its turn began, see `optimizers.proximal`.
  """
  i, n = turn
  if i >= n:
    raise errors.UserError(f'groups.{name}.turn={tuple(turn)}: there are {n} turns, and they count from 0; '
                           f'nearest: {(n - 1, n)}')
  if lasts > n:
    raise errors.UserError(f'groups.{name}.lasts={lasts}: there are {n} turns; nearest: {n}')
  pruned = None if pruned is None else dict(pruned)
  return Group(name, frozenset(paths), train, rate, weight_decay, clip, every, (i, n), lasts, masked, pruned,
               proximal)


def of(cfg, labels: dict) -> tuple[Group, ...]:
  """Returns the Groups of a configuration: disjoint, and together all parameters.

  Raises UserError, naming the field, for a group without parameters, for two groups of one parameter, and if
  nothing trains.

  Args:
    labels: dict path -> set of labels of every parameter of the model, see `modules.labels`.
  """
  sections, part = cfg.get('groups', {}), cfg.train.trainable
  if not sections:
    chosen = _of_part(part, labels)
    parts = group_of('', chosen), group_of('', labels.keys() - chosen, train=False)
    return tuple(group for group in parts if group.paths)
  if part != 'all':
    raise errors.UserError(f'train.trainable={part!r} and groups.{min(sections)} both say what trains; '
                           'nearest: train.trainable=all')
  groups, where = [], {name: fields.get('where') or name for name, fields in sections.items()}
  owner: dict[tuple, str] = {}
  # In the order of their names, which is that of config.json; 'rest' is what other groups leave.
  for name in sorted(sections, key=lambda name: (where[name] == REST, name)):
    paths = selected(name, where[name], labels, owner)
    owner |= dict.fromkeys(paths, name)
    groups.append(group_of(name, paths, **sections[name]))
  unclaimed = labels.keys() - owner.keys()
  if unclaimed:
    groups.append(group_of('', unclaimed))
  if not any(group.train for group in groups):
    raise errors.UserError(f'groups: no parameter trains, all are in {", ".join(sorted(sections))}')
  return tuple(groups)


def _of_part(part, labels):
  """The set of paths of the parameters of train.trainable=`part`."""
  there = (*PARTS, *LABELS)
  if part not in there:
    raise errors.UserError(f'train.trainable={part!r}{errors.nearest(part, there)} (there are: '
                           f'{", ".join(there)})')
  belongs = PARTS.get(part, lambda path: part in labels[path])
  paths = {path for path in labels if belongs(path)}
  if not paths:
    raise errors.UserError(f'train.trainable={part!r}: the model has no such parameters; nearest: all')
  return paths


def selected(name: str, where: str, labels: dict, owner: dict) -> set:
  """Returns the set of paths that `where` of group `name` selects.

  Args:
    labels: as for `of`.
    owner:  dict path -> name of the group that has it already.
  """
  field, paths = f'groups.{name}.where={where!r}', set()
  if not re.fullmatch(r'\w+', name):
    raise errors.UserError(f'groups: {name!r} is no name of a group; names are letters, digits and _')
  words = sorted({REST}.union(*labels.values()))
  for word in where.split(','):
    fits = _test(word, labels, owner)
    matching = {path for path in labels if fits(path)}
    if not matching:
      raise errors.UserError(f'{field}: no parameter is in {word!r}{errors.nearest(word, words)} (there are: '
                             f'{", ".join(words)}; a path has a / or *)')
    paths |= matching
  for path in sorted(paths & owner.keys(), key=_text):
    raise errors.UserError(f'{field}: {_text(path)} is in groups.{owner[path]}, too; a parameter has one '
                           'group')
  return paths


def _test(word, labels, owner):
  """The function of a path that says whether `word` of a `where` names the path."""
  if word == REST:
    return lambda path: path not in owner
  if '*' in word or '/' in word:
    return lambda path: fnmatch.fnmatchcase(_text(path), word)
  return lambda path: word in labels[path]


def _text(path):
  return '/'.join(map(str, path))


def described(cfg) -> str:
  """Returns which parameters of a configuration train, in a few words.

  >>> import ml_collections
  >>> described(ml_collections.ConfigDict(dict(groups=dict(head=dict(rate=0.1), router=dict(train=False)))))
  'all but router'
  """
  groups = cfg.get('groups', {})
  fixed = {name for name, fields in groups.items() if not fields.get('train', True)}
  if any((groups[name].get('where') or name) == REST for name in fixed):
    return ', '.join(sorted({*groups} - fixed))
  if groups:
    return f'all but {", ".join(sorted(fixed))}' if fixed else 'all'
  return cfg.train.trainable


def trained(groups) -> frozenset:
  """Returns the paths of all parameters that train."""
  return frozenset().union(*(group.paths for group in groups if group.train))


def kinds(groups, labels: dict) -> dict[str, frozenset]:
  """Returns dict kind of layer, of LABELLED and KINDS, -> paths of its parameters that train.

  Kinds without parameters are left out. labels: as for `of`.
  """
  found: dict[str, set] = {}
  for path in trained(groups):
    kind = next((label for label in LABELLED if label in labels[path]), None)
    found.setdefault(kind or next(name for name, fits in KINDS.items() if fits(path)), set()).add(path)
  return {kind: frozenset(found[kind]) for kind in sorted(found)}


def update_ratios(kinds: dict[str, frozenset], before: dict, after: dict) -> dict[str, jax.Array]:
  """Returns dict 'parts/KIND/update_ratio' -> f32[]: the norm of a step over the norm of what it moved.

  0 in a step that was refused; not finite where all weights are 0.

  Args:
    kinds:         of `kinds`.
    before, after: nested dicts of parameters, before the step and after.
  """
  def ratio(paths):
    old, new = (jax.tree.map(jnp.float32, take(tree, paths)) for tree in (before, after))
    return optimizers.norm(jax.tree.map(jnp.subtract, new, old)) / optimizers.norm(old)
  return {f'parts/{kind}/update_ratio': ratio(paths) for kind, paths in kinds.items()}


def mask(groups, grads, key):
  """Returns the gradients with those of masked groups 0 in the blocks that a draw of `key` says.

  One draw a block and step, the same whether blocks are scanned or not.

  Args:
    grads: of the parameters that train, nested dict.
    key:   PRNG key of the step.
  """
  for group in groups:
    if group.train and group.masked:
      part = take(grads, group.paths)
      grads = put(grads, jax.tree.map_with_path(functools.partial(_masked, group, key), part))
  return grads


def _masked(group, key, path, x):
  """Gradient x of the array at `path` of a masked group, of which parts are 0."""
  place, repeat = _block_of(tuple(entry.key for entry in path))
  key = jax.random.fold_in(key, zlib.crc32(_text(place).encode()) & 0x7FFFFFFF)
  draw = lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - group.masked)
  if repeat is not None:
    return jnp.where(draw(repeat), x, 0)
  kept = jax.vmap(draw)(jnp.arange(len(x)))                          # [L]
  return jnp.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def _block_of(path):
  """(place, repeat) of the array at `path`: where its block is in a repeated unit, and in which repeat.

  None: the array [L,...] is of all repeats. What is in no block is at a place of its own.
  """
  if 'segments' not in path:
    return path, 0
  at = path.index('segments') + 2
  if path[at] == 'blocks':
    return path[:at + 2], None
  return path[:at] + path[at + 1:at + 3], path[at]


def clip(groups, grads, step, limit, kinds=types.MappingProxyType({})):
  """Returns (grads, norms): gradients as the optimizer gets them, and their norms before.

  norms: dict of f32[]: grad_norm, of all that trains in this step, 'grad_norm/NAME' of every group, and
    'parts/KIND/grad_norm' of every kind of layer.

  Args:
    grads: of the parameters that train, nested dict.
    step:  i32[]. A group whose turn is not now has gradient 0.
    limit: of the norm of the groups that have no limit of their own; 0.0 = none.
    kinds: of `kinds`.
  """
  training = [group for group in groups if group.train]
  for group in training:
    if group.alternates:
      part = take(grads, group.paths)
      grads = put(grads, optimizers.held(group.due(step), part, jax.tree.map(jnp.zeros_like, part)))
  norms = {'grad_norm': optimizers.norm(grads)}
  norms |= {f'grad_norm/{group.name}': optimizers.norm(take(grads, group.paths))
            for group in training if group.name}
  norms |= {f'parts/{kind}/grad_norm': optimizers.norm(take(grads, paths)) for kind, paths in kinds.items()}
  alone = [(group.paths, group.clip) for group in training if group.clip is not None]
  if not alone:
    return optimizers.clip(grads, norms['grad_norm'], limit) if limit else grads, norms
  together = trained(group for group in training if group.clip is None)
  for paths, most in ((together, limit), *alone):
    if most and paths:
      part = take(grads, paths)
      grads = put(grads, optimizers.clip(part, optimizers.norm(part), most))
  return grads, norms


def optimizer(groups, make, names, shapes, steps=0):
  """Returns the optimizer of all groups that train, with one state of all their parameters.

  A parameter's slots are where they would be without groups. A group that does not train in every step has a
  count of its own steps, under `turns`. The last argument of `update` is the number of the step:
  (grads, state, params, rate f32[], step i32[], moves bool[] = True) -> (params, state).

  Args:
    make:          function (group, logical axes, shapes) -> `optimizers.Optimizer` of these parameters.
    names, shapes: nested dicts of all parameters.
    steps:         of the training; pruned groups need it.
  """
  own = lambda group: (take(names, group.paths), take(shapes, group.paths))
  parts = [(group, _with_step(group, make(group, *own(group)), *own(group), steps))
           for group in groups if group.train]

  def init(params):
    return _joined((group, part.init(take(params, group.paths))) for group, part in parts)

  def update(grads, state, params, rate, step, moves=True):
    states, new_params = [], params
    for group, part in parts:
      due = moves & group.due(step) if group.alternates else moves
      moved, slots = part.update(take(grads, group.paths), _own(state, group), take(params, group.paths),
                                 rate * group.rate, step, due)
      new_params = put(new_params, moved)
      states.append((group, slots))
    return new_params, _joined(states)

  return optimizers.Optimizer(init, update, _joined((group, part.names) for group, part in parts))


def _with_step(group, own, names, shapes, steps):
  """Optimizer `own` of a group with an `update` that takes the step, too, and prunes where that is said."""
  if group.proximal:
    held = _with_step(group._replace(proximal=0.0), own, names, shapes, steps)
    return optimizers.proximal(held, names, group.proximal, group.begins)
  if group.pruned is None:
    at_step = lambda grads, state, params, rate, step, moves: own.update(grads, state, params, rate, moves)
    return own._replace(update=at_step)
  flat = next((path for path, x in jax.tree.leaves_with_path(shapes) if x.ndim < 2), None)
  if flat is not None:
    raise errors.UserError(f'groups.{group.name}.pruned: {_text(entry.key for entry in flat)} is no matrix, '
                           'whose rows could be pruned; nearest: another `where`')
  return row_pruning.around(own, names, f'groups.{group.name}.pruned', steps, **group.pruned)


def _joined(states):
  """One state from pairs of a Group and its optimizer's state; parts that are no trees count steps."""
  whole = {}
  for group, state in states:
    counts = {name: value for name, value in state.items() if not isinstance(value, dict)}
    whole |= {name: put(whole.get(name, {}), tree) for name, tree in state.items() if name not in counts}
    if counts and group.alternates:
      whole['turns'] = whole.get('turns', {}) | {group.name: counts}
    else:
      whole |= counts
  return whole


def _own(state, group):
  """The state of a group's optimizer, out of the joined state; see `_joined`."""
  trees = {name: take(tree, group.paths) for name, tree in state.items()
           if isinstance(tree, dict) and name != 'turns' and _holds(tree, min(group.paths, key=_text))}
  if group.alternates:
    return trees | state.get('turns', {}).get(group.name, {})
  return trees | {name: value for name, value in state.items() if not isinstance(value, dict)}


def _holds(tree, path):
  """Whether nested dict `tree` has something at `path`; the averages of pruning are of one group alone."""
  for key in path:
    if key not in tree:
      return False
    tree = tree[key]
  return True


def take(tree, paths):
  """Returns the nested dict of the leaves of `tree` at `paths`; empty dicts are left out."""
  taken = {}
  for path in paths:
    leaf, node = tree, taken
    for key in path[:-1]:
      leaf, node = leaf[key], node.setdefault(key, {})
    node[path[-1]] = leaf[path[-1]]
  return taken


def put(tree, part):
  """Returns the nested dict `tree` with its leaves replaced by the leaves of the nested dict `part`."""
  if not isinstance(part, dict):
    return part
  return tree | {key: put(tree.get(key, {}), inner) for key, inner in part.items()}
