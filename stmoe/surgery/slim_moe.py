"""SlimMoE: every expert keeps a share of its hidden units, the most important of its own (arXiv:2506.18349).

All experts and the router stay. In stages: slim a little, distil, slim the result again, distil.

  stmoe compress RUN slim_moe:keep=0.7 --workdir A --distil teacher:weight=1.0,top=8
  stmoe train A
  stmoe compress A slim_moe:keep=0.7 --workdir B
  stmoe train B

The importance of a unit is of first order, |sum theta dL/dtheta| over its weights (u). L is the loss of the
run that is slimmed: in the first stage that of its data, later the distance to the teacher.
Differs: the paper has the distance in the first stage, too (u). A model's distance to itself has gradient 0.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe import ranges
from stmoe.surgery import aside
from stmoe.surgery import layout
from stmoe.surgery import sparse

HIDDEN = 'expert_mlp'                                                # axis of units
HEADS = 'joined_kv', 'heads'             # axes of heads: with the numbers of each, and a number for each
NORMS = ('q_norm', 'k_norm')             # of queries and keys


def _by_loss(layer, units, params, calibration):
  """f[E,F] or f[F]: |sum theta dL/dtheta| over the weights of a unit."""
  slopes = calibration('slopes')
  of = [slopes['/'.join(map(str, (*layer.path, 'experts', *path)))]['slopes'] for path in units]
  if _common(layer, units):
    of = [slope.reshape(-1, slope.shape[-1]).sum(0) for slope in of]
  return _said(np.abs(sum(of)), layer)


def _by_activation(layer, units, params, calibration):
  """f[E,F]: the mean of h^2 over all tokens, times the squared length of the weights that read h."""
  reading = _reading(layer, units)
  if _common(layer, units) or len(reading) != 1 or len(units_of(layer)) > 1:
    raise errors.UserError(f'by=activation: the experts of {layer.where} are not networks of one hidden '
                           'layer; nearest: by=loss')
  seen = calibration('hidden_squares', 'tokens')[layer.name]
  out = np.asarray(layout.at(params, (*layer.path, 'experts', *reading[0])), np.float64)         # [E, F, D]
  return seen['hidden_squares'] / max(float(seen['tokens']), 1.0) * np.square(out).sum(-1)


def _said(scores, layer):
  """`scores`; raises UserError where all are 0."""
  if not scores.any():
    raise errors.UserError(f'by=loss: the loss has no slope in {layer.where}; nearest: by=activation')
  return scores


# What says which units stay: functions that return f[E,F], of units that all experts share f[F].
SCORES = {'loss': _by_loss, 'activation': _by_activation}


def operate(params: dict, config: ml_collections.ConfigDict, calibration: sparse.Calibration, *,
            keep: ranges.PartOf1 = 0.5, by: ranges.Choice(*SCORES) = 'loss',
            heads: ranges.PartOf1 = 1.0) -> tuple[dict, dict]:
  """Returns (params, changes) with share `keep` of the hidden units of every expert; see `sparse`.

  Args:
    by:    'loss' is of first order, see above. 'activation' is the mean of h^2 times the squared length of
      the unit's outward weights, which needs no gradient.
    heads: share of the attention heads that stays in every block. With fewer heads of keys than of queries,
      share of their groups. By the loss.
  """
  replaced = aside.Made()
  changes: dict[str, object] = {}
  for layer in sparse.found(config) if keep < 1 else ():
    named, hidden = layer.axes('experts'), units_of(layer)
    width = sparse.section(config, layer.where).experts.d_ff
    number = changes[f'{layer.where}.experts.d_ff'] = sparse.share(width, keep)
    for units in hidden:
      stay = largest(SCORES[by](layer, units, params, calibration), number)
      for path, axis in units.items():
        array = layout.at(params, (*layer.path, 'experts', *path))
        replaced[(*layer.path, 'experts', *path)] = cut(array, stay, axis, 'expert' in named[path][0])
  if heads < 1:
    fewer, of_model = _heads(config, params, calibration, heads)
    replaced, changes = replaced | fewer, changes | of_model
  return sparse.replaced(params, replaced), changes


def units_of(layer: sparse.Layer) -> list[dict[tuple, int]]:
  """Returns for every layer of hidden units of a bank the dict path -> axis of units, of its arrays.

  Raises UserError for a bank whose units are not entries of arrays that write and of arrays that read them.
  """
  named = layer.axes('experts')
  hidden: dict[tuple, dict] = {}
  for path, (names, _) in named.items():
    if HIDDEN in names:                  # the parts of a list are layers of their own
      inside = max([place + 1 for place, key in enumerate(path) if isinstance(key, int)], default=0)
      hidden.setdefault(path[:inside], {})[path] = names.index(HIDDEN)
  if not hidden or not all(_reading(layer, units) for units in hidden.values()):
    raise errors.UserError(f'{layer.where}.experts: the hidden units of this bank are no entries of its '
                           'arrays; nearest: a bank such as mlp or glu')
  return list(hidden.values())


def _reading(layer, units):
  """The paths of the arrays that read hidden units: units are not their last axis."""
  return [path for path, axis in units.items() if axis < len(layer.axes('experts')[path][0]) - 1]


def _common(layer, units):
  """Whether all experts have the units in common."""
  return any('expert' not in layer.axes('experts')[path][0] for path in units)


def largest(scores: np.ndarray, number: int) -> np.ndarray:
  """Returns i[E,number] or i[number]: the units with the largest of `scores` f[E,F] or f[F], in order.

  >>> largest(np.array([[1.0, 3.0, 2.0], [5.0, 4.0, 5.0]]), 2).tolist()
  [[1, 2], [0, 2]]
  """
  return np.sort(np.argsort(-scores, axis=-1, kind='stable')[..., :number], axis=-1)


def cut(array: jax.Array, stay: np.ndarray, axis: int, own: bool) -> jax.Array:
  """Returns the array with the entries `stay` of `axis`: i[E,F'] of experts' arrays [E,...], else i[F']."""
  if not own or stay.ndim == 1:
    return jnp.take(array, jnp.asarray(stay), axis)
  shape = [1] * array.ndim
  shape[0], shape[axis] = stay.shape
  return jnp.take_along_axis(array, jnp.asarray(stay).reshape(shape), axis)


def _heads(config, params, calibration, heads):
  """(dict path -> array, changes) with share `heads` of the groups of heads of every attention."""
  model = config.model
  if 'num_heads' not in model:
    raise errors.UserError(f'heads={heads}: the model has no attention; nearest: heads=1.0')
  number = model.get('num_kv_heads') or model.num_heads              # of groups
  stay, names = sparse.share(number, heads), _attention(config)
  slopes, replaced = calibration('slopes'), {}
  for owner in sorted({path[:-1] for path in names if path[-1] == 'wo'}, key=str):
    slope = slopes['/'.join(map(str, (*owner, 'wo')))]['slopes'].reshape(number, -1).sum(1)
    best = largest(np.abs(slope), stay)
    for path in (path for path in names if path[:len(owner)] == owner):
      axis = 0 if path[-2] in NORMS else next(at for at, name in enumerate(names[path]) if name in HEADS)
      array = layout.at(params, path)
      groups = array.reshape(*array.shape[:axis], number, -1, *array.shape[axis + 1:])
      chosen = jnp.take(groups, jnp.asarray(best), axis)
      replaced[path] = chosen.reshape(*array.shape[:axis], -1, *array.shape[axis + 1:])
  changes = {'model.num_heads': model.num_heads // number * stay}
  return replaced, changes | ({'model.num_kv_heads': stay} if model.get('num_kv_heads') else {})


def _attention(config):
  """Dict path -> logical axes of the arrays of heads; raises UserError where heads are not theirs alone."""
  unrolled = sparse.abstract(sparse.changed(config, {'model.scan_layers': False}))
  named = layout.numbered(axes.names_of(nnx.state(unrolled, nnx.Param)))
  leaves = jax.tree.leaves_with_path(named, is_leaf=axes.is_names)
  of_heads = {tuple(entry.key for entry in path): names for path, names in leaves}
  shared = ['/'.join(map(str, path)) for path, names in of_heads.items() if 'relpos_buckets' in names]
  owners = {'model': config.model} | {f'blocks.{letter}': block for letter, block in config.blocks.items()}
  shared += [f'{where}.attention' for where, owner in owners.items()
             if hasattr(owner.get('attention'), 'keys') and owner.attention.name != 'attention']
  if shared:
    raise errors.UserError(f'heads: {shared[0]} has heads in common with other layers, or of another kind; '
                           'nearest: heads=1.0')
  # Norms of all heads together have a number for every entry of the heads; norms of each head stay whole.
  of_all = lambda path, names: path[-2] in NORMS and 'kv' not in names
  return {path: names for path, names in of_heads.items() if {*HEADS} & {*names} or of_all(path, names)}
