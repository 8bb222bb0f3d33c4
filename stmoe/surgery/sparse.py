"""The sparse layers of a model as a surgery meets them: in the parameters, in the configuration, by name.

A surgery is a file of this folder with a function

  operate(params, config, calibration, *, keep: ranges.PartOf1 = 0.5, ...) -> (params, changes)

  params:      parameters and router state of a trained model in one nested dict, stacks in the numbered form
    of `layout`. Its arrays may be `aside.Deferred`: `found` and `Layer.arrays` read them layer by layer, and
    `replaced` puts others in their place. What comes back fits the configuration after `changes`.
  config:      ConfigDict of the run.
  calibration: calibration(name, ...) -> dict layer -> dict name -> array, what a pass over the data
    collects (`derive/calibration/items.py` lists the names). The pass runs when it is called, once for all
    names. With data=dict(field=value) the pass is over data with these fields of section `data`.
  keep:        share that the method leaves; at 1.0 the model computes what it did before.
  changes:     dict 'a.b' -> value of the configuration; a value that is a dict is a group of fields.

Further keyword-only parameters with ranges are the method's own fields. `stmoe compress` finds the file.
"""

from collections.abc import Callable
from collections.abc import Mapping
import copy
import dataclasses
import math
import typing

from flax import nnx
import jax
import ml_collections
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe import modules
from stmoe.surgery import aside
from stmoe.surgery import layout

# calibration(name, ...) -> dict layer -> dict name -> array.
Calibration = Callable[..., dict[str, dict[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Layer:
  """A sparse layer whose experts are one bank.

  name:   as its Aux is called, and as calibration calls it: 'decoder_03'.
  path:   of the layer in numbered parameters, with what its block stands in (`parts/around`). Below are its
    `router` and its `experts`.
  where:  the layer's group of fields in the configuration: 'blocks.m.inner'. Layers of one letter share it.
  module: the layer without arrays, stacked or not; for what it offers.
  """
  name: str
  path: tuple
  where: str
  module: typing.Any

  @property
  def num_experts(self) -> int:
    """E, the experts of the bank."""
    return self.module.router.num_experts

  def axes(self, part: str) -> dict[tuple, tuple]:
    """Returns dict path -> (logical axes, shape) of the arrays in `part`, 'router' or 'experts'."""
    arrays = {}
    for path, variable in nnx.to_flat_state(nnx.state(getattr(self.module, part))):
      names = variable.get_metadata().get('out_sharding')
      names = (None,) * len(variable.shape) if names is None else tuple(names)
      own_names = tuple(name for name in names if name != 'layers')  # of stacked state, 'layers' is not named
      arrays[path] = own_names, variable.shape[len(variable.shape) - len(own_names):]
    return arrays

  def arrays(self, params: dict, part: str) -> aside.Fetched:
    """Returns mapping path -> array of what `params` holds for `part`, 'router' or 'experts'."""
    return self._fetched(params, part, self.axes(part))

  def owned(self, params: dict) -> aside.Fetched:
    """Returns mapping path -> array [E,...] of what belongs to experts, and not to the whole bank."""
    named = self.axes('experts')
    return self._fetched(params, 'experts', [path for path in named if 'expert' in named[path][0]])

  def _fetched(self, params, part, paths):
    return aside.Fetched({path: layout.held(params, (*self.path, part, *path)) for path in paths})


def found(config: ml_collections.ConfigDict) -> list[Layer]:
  """Returns the list of Layers of the model of `config`, in the order of stacks and blocks.

  Raises UserError for a model without sparse layers, or with one whose experts are not one bank.
  """
  model = abstract(config)
  paths = {id(module): path for path, module in nnx.iter_modules(model)}
  layers = [layer for stack in stacks(model) for layer in _of_stack(stack, paths[id(stack)], paths, config)]
  if not layers:
    raise errors.UserError('the model has no sparse layer, whose experts could become fewer')
  return layers


def abstract(config: ml_collections.ConfigDict) -> typing.Any:
  """Returns the model of `config` without arrays."""
  c = config.to_dict()
  make = modules.maker(c['model'])
  with nnx.logical_axis_rules(tuple(axes.RULES.items())):            # under a mesh flax translates names
    return nnx.eval_shape(lambda: make(blocks=c['blocks'], rngs=nnx.Rngs(0)))


def stacks(model: typing.Any) -> list:
  """Returns the stacks of `model`; raises UserError for one that is not of blocks with letters."""
  found_stacks = model.stacks()
  for stack in found_stacks:
    if not hasattr(stack, 'pattern'):
      raise errors.UserError(f'the layers of {type(stack).__name__} are no blocks with letters, which this '
                             "changes; nearest: a model such as model.name='lm'")
  return found_stacks


def _of_stack(stack, path, paths, config):
  letters = ''.join(letters * repeats for letters, repeats in stack.pattern)
  blocks = {name: layer for name, layer in stack.by_name().items() if '.' not in name}       # not attention's
  for name, layer in blocks.items():
    number, at = int(name.rpartition('_')[2]), paths[id(layer)]
    below = at[at.index('blocks') + 2:]                              # of the block: it may stand in another
    for inside, part in modules.offering(layer, 'router'):
      where = '.'.join(['blocks', letters[number], *map(str, inside)])
      if set(inside) - {'inner'} or 'experts' not in section(config, where):
        raise errors.UserError(f"{where} is no layer of one router and one bank of experts, such as 'moe'")
      yield Layer(name, (*path, 'layers', number, *below, *inside), where, part)


def section(config: ml_collections.ConfigDict, where: str) -> ml_collections.ConfigDict:
  """Returns the group of fields `where`, 'a.b', of a configuration."""
  for key in where.split('.'):
    config = config[key]
  return config


def changed(config: ml_collections.ConfigDict, changes: dict) -> ml_collections.ConfigDict:
  """Returns a copy of `config` with `changes`, dict 'a.b' -> value; the fields need not be there."""
  config = copy.deepcopy(config)
  with config.unlocked(), config.ignore_type():
    for field, value in changes.items():
      outer, _, key = field.rpartition('.')
      holder = section(config, outer) if outer else config
      if key in holder:
        del holder[key]
      holder[key] = value
  return config


def kept(layers: list[Layer], keep: float) -> dict[str, int]:
  """Returns dict where -> E', how many experts share `keep` leaves to each group of layers; at least one."""
  return {layer.where: share(layer.num_experts, keep) for layer in layers}


def share(number: int, keep: float) -> int:
  """Returns how many of `number` experts the share `keep` is, at least one.

  >>> share(8, 0.5), share(5, 0.5), share(8, 0.01)
  (4, 3, 1)
  """
  return max(math.floor(keep * number + 0.5), 1)


def replaced(params: dict, changes: dict[tuple, object]) -> dict:
  """Returns a copy of nested dict `params` with `changes`, dict path -> array or nested dict."""
  new_params = layout.together(params)
  for path, value in changes.items():
    layout.put(new_params, path, value)
  return new_params


def matrices(layer: Layer, params: dict) -> Mapping[tuple, tuple[jax.Array, str]]:
  """Returns mapping path -> (array [E,in,out], logical axis of the inputs) of the matrices of a bank.

  Raises UserError for a bank with an array of more axes than E that is no such matrix.
  """
  named, inputs = layer.axes('experts'), {}
  for path in layer.owned(params):
    _, *names = named[path][0]
    if sorted(names) == ['expert_embed', 'expert_mlp']:
      inputs[path] = names[0]
    elif len(names) > 1:
      raise errors.UserError(f'{layer.where}.experts: {".".join(map(str, path))} is no matrix from or to the '
                             "hidden units of one layer; nearest: experts 'mlp' or 'glu'")
  return layer.owned(params).beside(inputs)


def router(layer: Layer, params: dict) -> dict:
  """Returns the nested dict of the router of `layer` in `params`; {} for a router without arrays."""
  return layout.at(params, layer.path).get('router', {})
