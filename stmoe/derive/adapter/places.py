"""Where the arrays of an adapter are, in a model of ours and in files of PEFT's layout."""

from typing import NamedTuple

from flax import nnx
import ml_collections
import numpy as np

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.interop import peft
from stmoe.interop import rules
from stmoe.parts import adapting
from stmoe.surgery import layout
from stmoe.train import state as states

FOLDER = 'adapter'                       # of a run directory: what an imported adapter said of itself
RECORD = 'record.json'


class Slice(NamedTuple):
  """A layer's part of an array.

  leaf:  path of the array in the parameters; layer: number of the layer's part, None = all of the array.
  shape: of the part.
  """
  leaf: tuple
  layer: int | None
  shape: tuple


class Places:
  """The matrices of a configuration's model, and the arrays beside them.

  slices: dict path in numbered parameters -> Slice of every parameter.
  labels: dict path of an array -> its labels.
  sites:  `peft.Site` of every matrix of the base, in their order. Tensors are called as in the family `to`,
    or by our paths without a family.
  """

  def __init__(self, cfg: ml_collections.ConfigDict, to: str | None):
    model = axes.abstract(lambda: states.build(cfg))
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    self.labels = modules.labels(model)
    self.slices: dict[tuple, Slice] = {}
    for leaf in self.labels:
      shape, source = tuple(layout.held(shapes, leaf).shape), layout.held(layout.sources(shapes), leaf)
      for number, path in enumerate(source.paths):
        self.slices[path] = Slice(leaf, number, shape[1:]) if source.stacked else Slice(leaf, None, shape)
    table = lookup.module('family', to).table(cfg.to_dict()) if to else None
    matrices = set(adapting.matrices(model))
    self.sites = [site for path, one in self.slices.items() if one.leaf in matrices
                  for site in _sites(path, one.shape, table)]

  def parts(self, form: str = peft.LEGACY) -> list[peft.Part]:
    """Returns the `peft.Part`s of the model's adapter, in the same order for every form.

    Raises UserError for arrays that have no name in files.

    Args:
      form: key of `peft.FORMS`, of the names of a MixLoRA.
    """
    routed = any('experts' in path and (*path[:-3], 'router', 'w') in self.slices and path[-1] == 'a'
                 and 'adapter' in self.labels[one.leaf] for path, one in self.slices.items())
    parts = {part: None for site in self.sites for part in self._beside(site, form if routed else None)}
    named = {part.path for part in parts}
    lost = next((path for path, one in self.slices.items()
                 if 'adapter' in self.labels[one.leaf] and path not in named), None)
    if lost is not None:
      raise errors.UserError(f'{"/".join(map(str, lost))} of the adapter has no name in files of PEFT\'s '
                             'layout; the run directory itself holds the adapter')
    return list(parts)

  def together(self, arrays: dict[tuple, np.ndarray]) -> dict:
    """Returns the nested dict of parameters of `arrays`, dict path in numbered parameters -> array [...]."""
    whole: dict = {}
    of_leaf: dict[tuple, dict] = {}
    for path, array in arrays.items():
      of_leaf.setdefault(self.slices[path].leaf, {})[self.slices[path].layer] = array
    for leaf, parts in of_leaf.items():
      layout.put(whole, leaf, parts[None] if None in parts else np.stack([parts[i] for i in sorted(parts)]))
    return whole

  def _beside(self, site, form):
    """Yields the Parts of what stands beside the matrix of a Site; form: of a MixLoRA, or None."""
    *above, name = site.path
    for array in peft.ENDS:
      if (*above, adapting.PLACE, name, array) in self.slices:
        yield peft.mixlora(site, array, None, form) if form else peft.lora(site, array)
      experts = self.slices.get((*above, 'experts', name, array))
      if form and experts is not None:
        yield from (peft.mixlora(site, array, expert, form) for expert in range(experts.shape[0]))
        yield peft.router(site, form)

  def base(self, inventory: dict) -> dict:
    """Returns the entries of an inventory of parameters of no adapter, or of their averages, if any."""
    adapters = {'/'.join(map(str, ('params', *leaf))) for leaf, words in self.labels.items()
                if 'adapter' in words}
    read = lambda name: inventory['/'.join(states.evaluated(tuple(name.split('/')), inventory))]
    return {name: read(name) for name in inventory if name.startswith('params/') and name not in adapters}


def _sites(path, shape, table):
  """Yields the Sites of a layer's matrix, or of the matrices of its experts."""
  experts = [None] if len(shape) == 2 else range(shape[0]) if len(shape) == 3 else []
  for expert in experts:
    own = '.'.join(map(str, path if expert is None else (*path, expert)))
    named = own if table is None else rules.tensor('/'.join(map(str, path)), table, expert)
    if named is not None and (table is None or named.endswith('.weight')):
      yield peft.Site(path, expert, named.removesuffix('.weight'))
