"""Arrays of a start that modules of the new model make fit: positions of images of another size.

A module that does so offers `refit`, see `contract.OFFERS`.
"""

import functools

import jax

from stmoe import errors
from stmoe import modules
from stmoe.surgery import layout


def offers(plan):
  """Yields (path, ShapeDtypeStruct, function array -> array or None) of the parameters that modules refit.

  plan: the Blueprint of the new model.
  """
  params = plan.shapes['params']
  for path, part in modules.offering(plan.model(params, plan.shapes['router_state']), 'refit'):
    for name, new in layout.held(params, path).items():
      if not isinstance(new, dict):
        yield (*path, name), new, functools.partial(part.refit, name)


def below(paths, names):
  """Returns those of `names` that are the parameters at `paths` or below them, and their slots."""
  return {name for name in names if any(f'/{path}/' in f'{name}/' for path in paths)}


def state(plan, old, run):
  """Returns the training state `old` of run directory `run`, made to fit Blueprint `plan`.

  Slots of the optimizer of what was made to fit begin anew. Raises UserError for an array that does not fit.
  """
  leaves = lambda tree: {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
  params, shapes = leaves(old['params']), leaves(plan.shapes['params'])
  fitted = {}
  for path, new, fit in offers(plan):
    name = '/'.join(map(str, path))
    if params[name].shape != new.shape and (array := fit(params[name])) is not None:
      fitted[name] = jax.device_put(array, new.sharding)
  params |= fitted
  for name, new in shapes.items():
    if params[name].shape != new.shape:
      raise errors.UserError(f'{name} is {tuple(params[name].shape)} in {run} and {tuple(new.shape)} in the '
                             'new model; nearest: the image_size of the start')
  if not fitted:
    return old
  made = jax.tree.map_with_path(lambda path, _: params[_name(path)], old['params'])
  begin = jax.jit(plan.optimizer.init, out_shardings=plan.shardings()['opt_state'])
  slots, begun = leaves(old['opt_state']), begin(plan.trainable(made))
  anew = below(fitted, leaves(begun))
  take = lambda path, slot: slot if _name(path) in anew else slots[_name(path)]
  return old | dict(params=made, opt_state=jax.tree.map_with_path(take, begun))


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')
