"""The dense feed-forward layers of a model as a surgery meets them, and the experts that they are cut into.

A surgery from dense to sparse is a file of this folder with a function

  factorise(params, config, calibration, *, letters: ranges.Text = '', ...) -> (params, changes)

with arguments and answer as `operate` has them (see `sparse`). Layers of one letter become sparse together.
`stmoe factorise` finds the file.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections

from stmoe import errors
from stmoe import modules
from stmoe.surgery import aside
from stmoe.surgery import layout
from stmoe.surgery import sparse

# Fields of a block that are not its layer's.
OF_BLOCK = ('attention', 'norm', 'around', 'window')
# Arrays of a dense layer -> the axis of its hidden units. The output bias has none: parts share it out.
HIDDEN = {'wi': 1, 'wg': 1, 'wo': 0, 'bi': 0, 'bg': 0, 'bo': None}


@dataclasses.dataclass(frozen=True)
class Layer:
  """A dense feed-forward layer.

  name:  as a sparse layer in its place is called: 'decoder_03'.
  path:  of the layer in numbered parameters.
  where: the block's group of fields in the configuration: 'blocks.d'. Layers of one letter share it.
  """
  name: str
  path: tuple
  where: str

  @property
  def letter(self) -> str:
    """The letter of the block."""
    return self.where.rpartition('.')[2]

  def arrays(self, params: dict) -> dict[str, jax.Array]:
    """Returns dict name of HIDDEN -> array of the layer: wi, wg [D,F], wo [F,D], bi, bg [F], bo [D]."""
    return jax.tree.map(aside.fetched, layout.at(params, self.path))


def found(config: ml_collections.ConfigDict, letters: str = '') -> list[Layer]:
  """Returns the dense Layers of the model of `config`, in the order of stacks and blocks.

  Args:
    letters: of the blocks; '' = all that are dense.
  Raises:
    UserError: the model has experts, or no dense layers of these letters.
  """
  model = sparse.abstract(config)
  paths = {id(module): path for path, module in nnx.iter_modules(model)}
  layers: list[Layer] = []
  for stack in sparse.stacks(model):
    pattern = ''.join(unit * repeats for unit, repeats in stack.pattern)
    for name, layer in stack.by_name().items():
      if modules.sparse(layer):
        raise errors.UserError(f'the model is sparse, {name} has experts; nearest: the run of a dense model')
      number = int(name.rpartition('_')[2])
      path = (*paths[id(stack)], 'layers', number, 'layer')
      layers.append(Layer(name, path, f'blocks.{pattern[number]}'))
  layers = [layer for layer in layers if _dense(config, layer)]
  dense = ''.join(sorted({layer.letter for layer in layers}))
  if not layers or {*letters} - {*dense}:
    raise errors.UserError(f'letters={letters!r}: dense layers are in the blocks '
                           f'{", ".join(dense) or "of no letter"}' + (f'; nearest: {dense}' if dense else ''))
  return [layer for layer in layers if not letters or layer.letter in letters]


def _dense(config, layer):
  section = sparse.section(config, layer.where)
  return section.layer == 'dense' and 'around' not in section


def cut(arrays: dict[str, jax.Array], parts: int) -> dict[str, jax.Array]:
  """Returns dict name -> [parts,...]: contiguous parts of a layer's hidden units, whose outputs add up.

  Args:
    arrays: of `Layer.arrays`.

  >>> cut(dict(wi=jnp.arange(4.0)[None], bo=jnp.ones(1)), 2)['wi'].tolist()
  [[[0.0, 1.0]], [[2.0, 3.0]]]
  """
  pieces = {}
  for name, array in arrays.items():
    axis = HIDDEN[name]
    pieces[name] = jnp.stack([array / parts] * parts if axis is None else jnp.split(array, parts, axis))
  return pieces


def check_parts(section: ml_collections.ConfigDict, field: str, parts: int) -> None:
  """Raises UserError unless the hidden units of a block's layer divide into `parts`, the value of `field`."""
  if section.d_ff % parts:
    near = min(errors.divisors(section.d_ff), key=lambda n: abs(n - parts))
    raise errors.UserError(f'{field}={parts} does not divide the {section.d_ff} hidden units of a layer; '
                           f'nearest: {field}={near}')


def bank(section: ml_collections.ConfigDict, d_ff: int) -> dict:
  """Returns the fields of a bank of experts of width `d_ff` that compute as the layer of a block does."""
  same = {field: section[field] for field in ('activation', 'dropout_rate', 'init_scale', 'use_bias')}
  return dict(same, name='glu', d_ff=d_ff, limit=section.limit) if section.gated else dict(
      same, name='mlp', d_ff=d_ff)


def block(section: ml_collections.ConfigDict, **layer) -> dict:
  """Returns the fields of a block with the fields `layer` instead of those of its dense layer."""
  return {field: section[field] for field in OF_BLOCK if field in section} | layer
