"""The modules that a model, a layer or a router is made of, and what they offer (`core.contract.OFFERS`).

The one walk: nobody asks for the inside of a layer by the names of its parts. A sparse layer is a module that
has a `router`, wherever it is nested; a layer may have several.
"""

from flax import nnx


def offering(module, name):
  """Yields (path, part) for every part of `module`, outer ones first, that offers `name` and not None."""
  for path, part in sorted(nnx.iter_modules(module), key=lambda pair: len(pair[0])):
    if getattr(part, name, None) is not None:
      yield path, part


def outermost(module, name):
  """Returns the parts of `module` that offer `name` and are in no other part that does."""
  found = {path: part for path, part in offering(module, name)}
  inside = lambda path: any(path[:n] in found for n in range(len(path)))
  return [part for path, part in found.items() if not inside(path)]


def sparse(module):
  """Returns the parts of `module`, or itself, that have a router."""
  return [part for _, part in offering(module, 'router')]


def init_carry(module, x):
  """Returns the memory across layers of everything in `module`, arrays [B,T,.] by name; {} for most.

  Args:
    x: [B,T,D] what goes into `module`.
  """
  carry = {}
  for _, part in offering(module, 'init_carry'):
    carry |= part.init_carry(x)
  return carry


def commit(module, aux):
  """Lets every part of `module` with state across steps update it from `aux`, the Aux of a whole step.

  A part that does so answers for what is in it.
  """
  for part in outermost(module, 'commit'):
    part.commit(aux)


def wrapped(model, recipe):
  """Returns a copy of `model`, of the same arrays, whose routers are wrapped; `model` is unchanged.

  recipe: of a router of `routers/wrappers`, without its `inner`.
  """
  copy = nnx.merge(*nnx.split(model))
  for owner in sparse(copy):
    inner = owner.router
    owner.router = recipe(owner.d_model, inner=lambda d_model, rngs, inner=inner: inner, rngs=None)
  return copy
