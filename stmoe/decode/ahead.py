"""What a program rounds at every token is rounded once, ahead of its loops.

A model whose parameters are float32 and that computes in bfloat16 rounds a matrix where it is used. XLA
leaves such a conversion in the loop over tokens: every token would round all experts, also those that nobody
goes to. So the program is traced, and followed from its parameters to their uses.
"""

import typing

import jax
from jax.extend import core
from jax.extend.core import primitives
import jax.numpy as jnp

from stmoe.core.units import scans

Given = typing.Sequence[frozenset[int]]  # what arrays hold: numbers of the parameters, moved and not changed
MOVES = {primitives.broadcast_in_dim_p, primitives.concatenate_p, primitives.copy_p,
         primitives.dynamic_slice_p, primitives.gather_p, primitives.reshape_p, primitives.rev_p,
         primitives.slice_p, primitives.squeeze_p, primitives.stop_gradient_p, primitives.transpose_p}
LOOPS = {primitives.scan_p, primitives.while_p}


def run(function: typing.Callable, model: typing.Any, *arguments: typing.Any) -> typing.Any:
  """Returns function(model, *arguments), in which arrays of the model are rounded ahead where they may be.

  That is an array which every use in the function rounds to one and the same shorter dtype. A slice, a
  look-up or a transpose may come before. Other arrays stay as they are. So nothing is computed from other
  numbers. The rounded arrays take memory beside the model for as long as the program runs.

  Args:
    function: of a `model`, any tree of arrays, and `arguments`; traced twice where the model has an array
      wider than its `dtype`, that of its activations. A model that names none runs as it is.
  """
  arrays, tree = jax.tree.flatten(model)
  dtype = getattr(model, 'dtype', jnp.float32)
  if not any(_shorter(dtype, a.dtype) for a in arrays):
    return function(model, *arguments)
  whole = lambda arrays: function(jax.tree.unflatten(tree, arrays), *arguments)
  dtypes = rounded(whole, arrays)
  return whole([a if dtype is None else a.astype(dtype) for a, dtype in zip(arrays, dtypes)])


def rounded(function: typing.Callable, arrays: typing.Sequence[jax.Array]) -> list:
  """Returns for each of `arrays` the shorter dtype to which every use in function(arrays) rounds it, or None.

  >>> half = lambda arrays: (arrays[0].T.astype(jnp.bfloat16), arrays[1].astype(jnp.bfloat16), arrays[1] + 1)
  >>> rounded(half, [jnp.ones((2, 2)), jnp.ones(2), jnp.ones(2)])
  [dtype(bfloat16), None, None]
  """
  traced = jax.make_jaxpr(function)(list(arrays)).jaxpr
  uses = Uses(len(arrays))
  uses.keep(uses.follow(traced, [frozenset({i}) for i in range(len(arrays))]))
  return [uses.only(i, a.dtype) for i, a in enumerate(arrays)]


class Uses:
  """What is done to the parameters of a program: dict number -> the dtypes they become; None, another use."""

  def __init__(self, number: int):
    self.dtypes: dict[int, set] = {i: set() for i in range(number)}

  def only(self, number: int, dtype: jnp.dtype) -> jnp.dtype | None:
    """Returns the dtype shorter than `dtype` that a parameter becomes in all uses, or None."""
    [*found] = self.dtypes[number]
    return found[0] if len(found) == 1 and found[0] is not None and _shorter(found[0], dtype) else None

  def keep(self, given: Given) -> None:
    """Notes a use of parameters as they are."""
    for number in frozenset().union(*given):
      self.dtypes[number].add(None)

  def follow(self, jaxpr: core.Jaxpr, given: Given) -> list[frozenset[int]]:
    """Returns what the results of `jaxpr` hold, whose inputs hold `given`."""
    held = dict(zip(jaxpr.invars, given, strict=True))
    of = lambda v: frozenset() if isinstance(v, core.Literal) else held.get(v, frozenset())
    for eqn in jaxpr.eqns:
      inputs = [of(v) for v in eqn.invars]
      if any(inputs):
        held.update(zip(eqn.outvars, self._apply(eqn, inputs), strict=True))
    return [of(v) for v in jaxpr.outvars]

  def _apply(self, eqn, given):
    """What the results of an equation hold."""
    nothing = [frozenset()] * len(eqn.outvars)
    if eqn.primitive is primitives.convert_element_type_p:
      for number in given[0]:
        self.dtypes[number].add(jnp.dtype(eqn.params['new_dtype']))
      return nothing
    if eqn.primitive in MOVES and (all(given) or eqn.primitive is not primitives.concatenate_p):
      return [frozenset().union(*given)]
    calls, kept = _calls(eqn, given)
    self.keep(kept)
    outs = [self.follow(jaxpr, held) for jaxpr, held in calls]
    if eqn.primitive in LOOPS or not calls:
      self.keep(sum(outs, []))
      return nothing
    return [frozenset().union(*out) for out in zip(*outs, strict=True)]


def _calls(eqn, given):
  """([(jaxpr inside of an equation, what its inputs hold)], what of `given` is used otherwise).

  What a loop carries is another array after every turn, so it is not followed.
  """
  params, primitive = eqn.params, eqn.primitive
  if primitive is primitives.while_p:
    first, last = params['cond_nconsts'], params['cond_nconsts'] + params['body_nconsts']
    blank = [frozenset()] * (len(given) - last)
    return [(params['cond_jaxpr'].jaxpr, [*given[:first], *blank]),
            (params['body_jaxpr'].jaxpr, [*given[first:last], *blank])], given[last:]
  inner = [getattr(jaxpr, 'jaxpr', jaxpr) for jaxpr in core.jaxprs_in_params(params)]
  if primitive is primitives.scan_p:
    first, last = scans.ends(eqn)
    held = [*given[:first], *[frozenset()] * (last - first), *given[last:]]
    return [(inner[0], held)], given[first:last]
  given = given[1:] if primitive is primitives.cond_p else given     # without the number of the branch
  fits = lambda jaxpr: (len(jaxpr.invars), len(jaxpr.outvars)) == (len(given), len(eqn.outvars))
  if inner and all(map(fits, inner)):
    return [(jaxpr, given) for jaxpr in inner], []
  return [], given                                                   # a product, a kernel


def _shorter(dtype, than):
  """Whether both are of floating numbers and `dtype` takes fewer bytes."""
  floating = all(jnp.issubdtype(d, jnp.floating) for d in (dtype, than))
  return floating and jnp.dtype(dtype).itemsize < jnp.dtype(than).itemsize
