"""Models with adapters beside their matrices: how a model that computes comes from arrays that lie apart.

In the parameters an adapter stands beside its matrix: attention/wq and attention/adapters/wq/a. So a base has
the same names with and without adapters, and one base serves several of them. In a model that computes, the
matrix is a `core.units.adapted.Adapted`, and layers and banks do not know.
"""

import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe import modules
from stmoe.core import contract
from stmoe.core.units import adapted

Model = typing.TypeVar('Model', bound=nnx.Module)
PLACE = 'adapters'                       # the attribute of a module with the LowRanks of its matrices
BATCHED = 'layers', 'expert', 'heads'    # axes along which an array is several matrices


class LowRank(nnx.Module):
  """A low-rank part beside the matrices w [...,D,F]: a [...,D,r], b [...,r,F], maybe a magnitude [...,F].

  A is drawn, see `parts/adapters/lora.py`. B is 0, so at first the part is 0. The magnitude is at first the
  norm of the columns of w.

  Args:
    rank:  r; scale: s of `adapted.Adapted`.
    num_experts: E, so many parts a [E,D,r], b [E,r,F] beside one w [D,F]; None = a part for each matrix.
  """

  def __init__(self, w: nnx.Variable, *, rank: int, scale: float, dropout_rate: float = 0.0,
               gaussian: bool = False, dora: bool = False, num_experts: int | None = None, rngs):
    *lead, fan_in, fan_out = w.shape
    names = tuple(w.get_metadata().get('out_sharding') or (None,) * w.ndim)
    *of_lead, of_in, of_out = (None,) * (w.ndim - len(names)) + names
    if num_experts is not None:
      lead, of_lead = [*lead, num_experts], [*of_lead, 'expert']
    param = lambda init, shape, *names: axes.param(init, (*lead, *shape), *of_lead, *names, label='adapter',
                                                   rngs=rngs)
    bound = rank ** -1 if gaussian else fan_in ** -0.5
    drawn = ((lambda key, shape, dtype: bound * jax.random.normal(key, shape, dtype)) if gaussian else
             (lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)))
    self.a = param(drawn, (fan_in, rank), of_in, 'unmodeled')
    self.b = param(nnx.initializers.zeros, (rank, fan_out), 'unmodeled', of_out)
    norms = lambda key, shape, dtype: jnp.broadcast_to(adapted.norms(w[...]), shape).astype(dtype)
    self.magnitude = param(norms, (fan_out,), of_out) if dora else None
    self.scale = scale
    self.dropout_rate = dropout_rate

  def beside(self, w: jax.Array, where: str) -> adapted.Adapted:
    """Returns the Adapted of w [...,D,F], called `where`, and this part."""
    # Of models without numbers, too, whose arrays have no parts.
    magnitude = None if self.magnitude is None else self.magnitude.get_value()
    return adapted.Adapted(w, self.a.get_value(), self.b.get_value(), magnitude, scale=self.scale,
                           dropout_rate=self.dropout_rate, where=where)


def matrices(model: nnx.Module) -> dict[tuple, nnx.Variable]:
  """Returns dict path -> parameter [...,D,F] of the matrices of `model` that adapters may stand beside.

  Not of them: what is looked up, what routers have, and factors in lists, of which one matrix is made.
  """
  labels, found = modules.labels(model), {}
  for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    names = variable.get_metadata().get('out_sharding') or ()
    inner = [name for name in names if name not in BATCHED]
    looked_up = 'relpos_buckets' in inner or inner[:1] == ['vocab']
    one = len(inner) == 2 and list(names[-2:]) == inner and isinstance(path[-1], str)
    if one and not looked_up and not labels[path] & {'router', 'adapter'}:
      found[tuple(path)] = variable
  return found


def owner(model: nnx.Module, path: tuple) -> typing.Any:
  """Returns the module whose array `path`, a tuple of keys, names."""
  module: typing.Any = model
  for key in path[:-1]:
    module = module[key] if isinstance(key, int) else getattr(module, key)
  return module


def view(model: Model) -> Model:
  """Returns `model`, changed in place: where adapters stood beside matrices, the matrices are Adapted.

  Raises nothing: a model without adapters comes back as it is.
  """
  for path, part in list(modules.offering(model, PLACE)):
    for name, low_rank in part.adapters.items():
      w = getattr(part, name)
      setattr(part, name, w.replace(low_rank.beside(w.get_value(), '/'.join(map(str, (*path, name))))))
    delattr(part, PLACE)
  return model


def begun(model: nnx.Module) -> dict[tuple, jax.Array]:
  """Returns dict path -> magnitude [...,F] of every adapter that has one, for the matrices of `model`."""
  magnitudes = {}
  for path, part in modules.offering(model, PLACE):
    for name, low_rank in part.adapters.items():
      if low_rank.magnitude is not None:
        magnitudes[(*path, PLACE, name, 'magnitude')] = adapted.norms(getattr(part, name)[...])
  return magnitudes


class _Drawn(nnx.Module):
  """A bank whose adapters drop entries by the key that the executor gives."""

  def __init__(self, bank: contract.Bank):
    self.bank = bank

  def __call__(self, rows: contract.Rows, key: jax.Array | None = None) -> contract.Rows:
    """Returns the rows' expert outputs, [.,D] -> [.,D'] in the same layout."""
    return (self.bank if key is None else _keyed(self.bank, key))(rows, key)


def drawn(layer: Model, ctx: contract.Context) -> Model:
  """Returns a copy of a sub-layer whose adapters drop entries of what enters them; `layer` where none does.

  In training only, and by the key of `ctx`. Adapters of banks of experts drop by the key of the executor,
  which differs from shard to shard and from block to block.
  """
  if not ctx.train or ctx.key is None or not _dropping(layer):
    return layer
  layer = nnx.merge(*nnx.split(layer))
  for path, _ in list(_dropping(layer)):
    if 'experts' in path:
      holder = owner(layer, path[:path.index('experts') + 1])
      if not isinstance(holder.experts, _Drawn):
        holder.experts = _Drawn(holder.experts)
  return _keyed(layer, ctx.fold('adapters').key, but=_Drawn)


def _dropping(module):
  """[(path, Variable)] of the Adapted matrices of a module that drop entries, in a fixed order."""
  return [(tuple(path), variable) for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param))
          if isinstance(variable.get_value(), adapted.Adapted) and variable.get_value().dropout_rate]


def _keyed(module, key, but=()):
  """A copy of `module` whose Adapted matrices have a key each; not those inside of modules of class `but`."""
  module = nnx.merge(*nnx.split(module))
  for number, (path, variable) in enumerate(_dropping(module)):
    if not any(isinstance(owner(module, path[:n + 1]), but) for n in range(len(path))):
      one = variable.get_value().replace(key=jax.random.fold_in(key, number))
      setattr(owner(module, path), path[-1], variable.replace(one))
  return module
