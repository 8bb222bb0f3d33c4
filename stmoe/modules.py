"""The modules that a model, a layer or a router is made of, and what they offer (`core.contract.OFFERS`).

This is the only walk: nobody asks for the inside of a layer by the names of its parts. A sparse layer is a
module that has a `router`, wherever it is nested; a layer may have several.
"""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import errors
from stmoe import lookup
from stmoe import router_state as state


def offering(module: nnx.Module, name: str) -> typing.Iterator[tuple[tuple, typing.Any]]:
  """Yields (path, part) for every part of `module`, outer parts first, that offers `name` and not None."""
  for path, part in sorted(nnx.iter_modules(module), key=lambda pair: len(pair[0])):
    if getattr(part, name, None) is not None:
      yield path, part


def outermost(module: nnx.Module, name: str) -> list:
  """Returns the parts of `module` that offer `name` and are in no other such part."""
  parts = {path: part for path, part in offering(module, name)}
  inside = lambda path: any(path[:n] in parts for n in range(len(path)))
  return [part for path, part in parts.items() if not inside(path)]


def num_weights(module: nnx.Module) -> int:
  """Returns how many weights a module has: its parameters, and weights that are stored as codes."""
  parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
  return parameters + sum(part.num_coded() for _, part in offering(module, 'num_coded'))


def sparse(module: nnx.Module) -> list:
  """Returns the parts of `module`, or itself, that have a router."""
  return [part for _, part in offering(module, 'router')]


LABELLED = ('router', 'head')            # parts whose parameters are called as their owner calls the part


def labels(model: nnx.Module) -> dict[tuple, set[str]]:
  """Returns dict path (a tuple of keys) -> the set of labels of every parameter of `model`.

  Every parameter is `all`, and `expert` if `expert` is among its logical axes. What is below a `router` or a
  `head` is called so. What is below a module that offers a `label` has that label. An array may have a label
  of its own, see `axes.param`.
  """
  above_paths = [(path, part.label) for path, part in offering(model, 'label')]
  above_paths += [((*path, name), name) for name in LABELLED for path, _ in offering(model, name)]
  labels_of = {}
  for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    array = variable.get_metadata()
    labels_of[path] = {'all'} | {'expert'} & set(array.get('out_sharding') or ())
    labels_of[path] |= {label for above, label in above_paths if path[:len(above)] == above}
    labels_of[path] |= {array['label']} if 'label' in array else set()
  return labels_of


def constant(model: typing.Any, label: str = 'all') -> typing.Any:
  """Returns a copy of `model` in which parameters with `label` (see `labels`) get no gradient."""
  graph, params, *rest = nnx.split(model, nnx.Param, ...)
  labels_of = labels(model)
  stopped = lambda path, v: v.replace(jax.lax.stop_gradient(v[...])) if label in labels_of[path] else v
  params = nnx.from_flat_state([(path, stopped(path, v)) for path, v in nnx.to_flat_state(params)])
  return nnx.merge(graph, params, *rest)


def maker(section: typing.Mapping[str, typing.Any]) -> typing.Callable[..., typing.Any]:
  """Returns the function (blocks, rngs) -> model of section `model` of a configuration.

  With model.param_dtype='bfloat16' parameters take two bytes each. They are read in the dtype of activations.
  The parameters of routers, whose choices a rounding could change, stay float32. So do those of adapters,
  whose small updates would be rounded away. What model.adapter names is put beside the model's matrices. A
  model without a field `blocks` has no layers that letters name; `blocks` must then be empty.
  """
  own_fields = dict(section)
  dtype = own_fields.pop('param_dtype', 'float32')
  adapter = own_fields.pop('adapter', None)
  make = lookup.recipe('model', own_fields)
  make = make if lookup.takes(make, 'blocks') else functools.partial(_without_blocks, make, section['name'])
  if adapter is not None:
    make = functools.partial(_adapted, make, lookup.recipe('adapter', adapter)())
  return make if dtype == 'float32' else lambda **given: _narrowed(make(**given), dtype)


def _without_blocks(make, name, *, blocks, rngs):
  """The model that recipe `make` makes, which takes no blocks."""
  if blocks:
    raise errors.UserError(f'blocks has the letters {", ".join(sorted(blocks))}, and model {name!r} has no '
                           'layers that letters name; nearest: blocks=dict()')
  return make(rngs=rngs)


def _adapted(make, adapter, *, rngs, **given):
  """The model of `make`, with `adapter` beside its matrices."""
  model = make(rngs=rngs, **given)
  adapter.attach(model, rngs)
  return model


def _narrowed(model, dtype):
  """`model`, whose float32 parameters but those of routers and adapters became `dtype`, in place."""
  labels_of = labels(model)
  for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    if not {'router', 'adapter'} & labels_of[path] and variable.dtype == jnp.float32:
      variable.set_value(variable[...].astype(dtype))
  return model


def init_carry(module: nnx.Module, x: jax.Array) -> dict[str, jax.Array]:
  """Returns the memory across layers of everything in `module`, arrays [B,T,.] by name; {} for most.

  Args:
    x: [B,T,D] what goes into `module`.
  """
  carry: dict[str, jax.Array] = {}
  for _, part in offering(module, 'init_carry'):
    carry |= part.init_carry(x)
  return carry


def commit(module: nnx.Module, aux: object, offer: str = 'commit') -> None:
  """Lets every part of `module` with state across steps update it from `aux`, the Aux of a whole step.

  A part that does so answers for its inner parts.

  Args:
    offer: 'commit', or 'accumulate' with the Aux of one microbatch (`core.contract.OFFERS`).
  """
  for part in outermost(module, offer):
    getattr(part, offer)(aux)


def commit_each(stacked: nnx.Module, aux: object, offer: str = 'commit') -> None:
  """`commit` for every slice of a stacked module, along the leading axis of its arrays and of `aux`'s.

  Only the module's RouterState changes.
  """
  if not jax.tree.leaves(nnx.state(stacked, state.RouterState)):
    return

  def commit_slice(module, aux):
    commit(module, aux, offer)
    return nnx.state(module, state.RouterState)
  nnx.update(stacked, jax.vmap(commit_slice)(stacked, aux))


def joint(stack: nnx.Module, aux: dict, ctx: typing.Any) -> dict:
  """Returns `aux`, dict layer name -> Aux of all layers of a stack, after what they decide together.

  Parts of one class say it once for all layers of that class.

  Args:
    ctx: the Context of the stack.
  """
  for part in {type(part): part for _, part in offering(stack, 'joint')}.values():
    aux = part.joint(aux, ctx)
  return aux


def showing(model: nnx.Module, names: typing.Iterable[str]) -> typing.Any:
  """Returns a copy of `model`, of the same arrays, that reports the states after the blocks `names`, too.

  Each of them is a `core.hidden.Hidden` beside what layers report; `core.hidden.apart` tells them apart.
  Raises UserError for a block that there is not.
  """
  copy: typing.Any = nnx.merge(*nnx.split(model))
  there = {name: (stack, index) for stack in copy.stacks() for index, name in enumerate(stack.blocks())}
  for name in names:
    if name not in there:
      raise errors.UserError(f'the model has no block {name!r}{errors.nearest(name, there)} (it has: '
                             f'{", ".join(there)})')
    stack, index = there[name]
    stack.shown = (*stack.shown, index)
  return copy


def edited(model: nnx.Module,
           edits: typing.Mapping[str, typing.Callable[[jax.Array], jax.Array]]) -> typing.Any:
  """Returns a copy of `model`, of the same arrays, in whose forward passes something else is put in place.

  This is what activation patching, ablation and steering need. `model` is unchanged.

  Args:
    edits: dict name -> function y [B,T,D] -> [B,T,D], of operations that JAX compiles. 'decoder_03' is the
      output of the feed-forward layer of block 3, before it is added to the residual stream (and before its
      dropout). 'decoder_03.attention' and 'decoder_03.cross' are those of attention. 'decoder_03.hidden' is
      the residual stream after the block. In a block that lets some tokens go by (Mixture-of-Depths) its
      sub-layers have the others alone.
  Raises:
    UserError: there is nothing of a name; a function that returns another shape, when the model is called.
  """
  copy: typing.Any = nnx.merge(*nnx.split(model))
  there = {name: stack for stack in copy.stacks() for name in stack.points()}
  for name, function in edits.items():
    if name not in there:
      raise errors.UserError(f'the model has nothing to edit that is called {name!r}'
                             f'{errors.nearest(name, there)} (it has: {", ".join(there)})')
    there[name].edit(name, function)
  return copy


READER = 'reader'                        # what a model's part is called that a target has of its own


def with_reader(model: typing.Any, target: typing.Any, d_model: int, rngs: nnx.Rngs) -> typing.Any:
  """Returns `model` with the parameters of its target's own as its part READER, if there are any."""
  reader = target.reader(d_model, rngs) if hasattr(target, 'reader') else None
  if reader is not None:
    setattr(model, READER, reader)
  return model


def without_reader(arrays: dict) -> dict:
  """Returns a pure dict of the arrays of a model without those of its READER."""
  return {name: part for name, part in arrays.items() if name != READER}


def wrapped(model: nnx.Module, recipe: typing.Callable) -> typing.Any:
  """Returns a copy of `model`, of the same arrays, whose routers are wrapped; `model` is unchanged.

  recipe: of a router of `routers/wrappers`, without its `inner`.
  """
  return wrapped_each(model, lambda number: recipe)


def wrapped_each(model: nnx.Module, recipe_of: typing.Callable[[int], typing.Callable]) -> typing.Any:
  """Returns `wrapped` of `model`, where router number i of `routers` is wrapped by `recipe_of(i)`."""
  copy = nnx.merge(*nnx.split(model))
  for number, owner in enumerate(_with_router(copy)):
    inner = owner.router
    owner.router = recipe_of(number)(owner.d_model, inner=lambda d_model, rngs, inner=inner: inner, rngs=None)
  return copy


def routers(model: nnx.Module) -> list:
  """Returns the routers of `model` in the order of its layers; scanned layers, and tied blocks, have one."""
  return [owner.router for owner in _with_router(model)]


def _with_router(model):
  return [part for _, part in sorted(offering(model, 'router'), key=lambda pair: pair[0])]
