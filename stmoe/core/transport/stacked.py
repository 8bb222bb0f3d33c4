"""Where a layer's slice of stacked arrays lies, for executors that read the arrays of an expert at a time.

A scan over layers gives every layer its slice [E,...] of arrays [L,E,...]. XLA copies a slice that a loop
over experts reads: the matrices of all experts, forward and once more backward. With `within` around a layer
an executor finds in which array the slices of its bank lie, and its loop reads that array.

The backward of a scan makes the gradient of a slice, and copies that into the gradient of the stack. So in
training on CPUs slices have no gradient where an executor reads them so. The scan carries the stack through
all layers, unchanged, and the gradient of this `total` is what the backward carries: there an executor adds
the gradient of one expert at a time. What else makes a gradient of a slice is added to the slice's place by
`_taken`.

A slice is known by identity. Arrays that were made of slices (cast, mixed, split over devices) are read as
they are.
"""

import contextlib
import contextvars
import typing

from flax import struct
import jax
from jax import custom_derivatives
from jax.extend import core as tracing
import jax.numpy as jnp

from pallas_kernels import target
from stmoe import axes


class Slice(struct.PyTreeNode):
  """whole[layer]: whole [L,E,...], layer i32[].

  total: [L,E,...], to whose gradient those of the slice are added, or None.
  """
  whole: jax.Array
  layer: jax.Array
  total: jax.Array | None = None


class Known:
  """The slices of a unit, of which one place after another passes `totals` on.

  slices: id of a slice -> the slice, so that no other array gets its id, its place, and where it lies.
  totals: [L,E,...] by place, None of codes, which have no gradients; or none at all.
  """

  def __init__(self, slices: list[tuple[jax.Array, Slice]], totals: list[jax.Array | None]):
    self.slices = {id(own): (own, place, where) for place, (own, where) in enumerate(slices)}
    self.totals = totals
    self.level = _level()


_known: contextvars.ContextVar[Known | None] = contextvars.ContextVar('known', default=None)
_alone: contextvars.ContextVar[bool] = contextvars.ContextVar('alone', default=False)


def _level():
  """What JAX traces now: a total that passes through a function of its own could not leave it."""
  return tracing.get_opaque_trace_state(convention='nnx')


def wholes(units: typing.Any) -> list[jax.Array | None]:
  """Returns every array of `units` [L,...], for reading: without gradient, and None if it is no experts'.

  On several devices all are None: a slice at a place known only then may make the compiler gather an array.
  So they are inside of `alone`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  readable = (mesh.empty or mesh.size == 1) and not _alone.get()
  of_experts = jax.tree.leaves(axes.per_expert(units))
  return [jax.lax.stop_gradient(w) if own and readable else None
          for own, w in zip(of_experts, jax.tree.leaves(units), strict=True)]


def summed(units: typing.Any, arrays: list[jax.Array | None]) -> tuple[typing.Any, list[jax.Array | None]]:
  """Returns (`units` without gradients to the `arrays` that `wholes` gave, the totals, which have them).

  Only CPUs have totals. Elsewhere gradients go to `units` [L,...], and there are none. Codes have None.
  """
  if target.device().platform != 'cpu':
    return units, []
  leaves, tree = jax.tree.flatten(units)
  totals = [w if jnp.issubdtype(w.dtype, jnp.inexact) else None
            for w, whole in zip(leaves, arrays, strict=True) if whole is not None]
  return jax.tree.unflatten(tree, [w if whole is None else whole for w, whole in zip(leaves, arrays)]), totals


@contextlib.contextmanager
def alone() -> typing.Iterator[None]:
  """Inside, `wholes` gives nothing: a layer reads its slice alone, so that stacks need not be in memory."""
  token = _alone.set(True)
  try:
    yield
  finally:
    _alone.reset(token)


@contextlib.contextmanager
def within(arrays: list[jax.Array | None], unit: typing.Any, layer: jax.Array,
           totals: typing.Sequence[jax.Array | None] = ()) -> typing.Iterator[tuple[typing.Any, Known]]:
  """Gives (the unit, Known): inside, `found` knows the unit's arrays; `Known.totals` are then passed on.

  Args:
    arrays: of `wholes`; the arrays of `unit` are their slices `layer`, i32[].
    totals: of `summed`, or none.
  """
  leaves, passed = jax.tree.leaves(unit), list(totals)
  places = [n for n, whole in enumerate(arrays) if whole is not None]
  if passed:
    for place, n in enumerate(places):
      if passed[place] is not None:
        passed[place], leaves[n] = _taken(passed[place], leaves[n], layer)
    unit = jax.tree.unflatten(jax.tree.structure(unit), leaves)
  known = Known([(w, Slice(whole, layer)) for w, whole in zip(leaves, arrays) if whole is not None], passed)
  token = _known.set(known)
  try:
    yield unit, known
  finally:
    _known.reset(token)


@jax.custom_vjp
def _taken(total, w, layer):
  """(total, w): gradients of w [E,...] are added to those of total [L,E,...], at `layer`."""
  del layer
  return total, w


def _gradient_of_taken(layer, gradients):
  total, own = gradients
  if isinstance(own, custom_derivatives.SymbolicZero):               # an executor has added them all
    return total, None, None
  return _added(total, own, layer), None, None


_taken.defvjp(lambda total, w, layer: ((total.value, w.value), layer.value), _gradient_of_taken,
              symbolic_zeros=True)


def found(bank: typing.Any) -> typing.Any:
  """Returns `bank` with a Slice in place of every array [E,...] of which it is known where the array lies."""
  known = _known.get()
  if known is None:
    return bank
  totals = known.totals if known.level == _level() else []

  def of(w):
    if id(w) not in known.slices:
      return w
    _, place, where = known.slices[id(w)]
    return where.replace(total=totals[place]) if totals else where
  return jax.tree.map(of, bank)


def _leaves(read):
  return jax.tree.leaves(read, is_leaf=lambda w: isinstance(w, Slice))


def totals(read: typing.Any) -> list[jax.Array | None]:
  """Returns the totals [L,E,...] in what `found` returned, one of every array of the bank, or None."""
  return [w.total if isinstance(w, Slice) else None for w in _leaves(read)]


def without_totals(read: typing.Any) -> typing.Any:
  """Returns what `found` returned, arrays [E,...] and Slices, to keep; of totals a scan would keep L."""
  apart = lambda w: w.replace(total=None) if isinstance(w, Slice) else w
  return jax.tree.map(apart, read, is_leaf=lambda w: isinstance(w, Slice))


def pass_on(bank: typing.Any, passed: list[jax.Array | None]) -> None:
  """Takes what an executor returned: totals [L,E,...] by array of `bank`, None where it has none."""
  known = _known.get()
  for w, total in zip(jax.tree.leaves(bank), passed, strict=True):
    if known is not None and total is not None:
      known.totals[known.slices[id(w)][1]] = total


def one(w: jax.Array | Slice, e: jax.Array) -> jax.Array:
  """Returns [1,...]: of w [E,...] that of expert e, i32[]."""
  if not isinstance(w, Slice):
    return jax.lax.dynamic_index_in_dim(w, e, 0)
  rest = w.whole.shape[2:]
  at = jax.lax.dynamic_slice(w.whole, (w.layer, e, *(0 for _ in rest)), (1, 1, *rest))
  return at.reshape(1, *rest)


class Gradients:
  """Gradients of a bank, to which those of one expert after another are added.

  read: of `found`, without totals. passed: gradients of the totals so far, [L,E,...], or None, by array.
  """

  def __init__(self, bank: typing.Any, read: typing.Any, passed: list[jax.Array | None]):
    self._bank, self._read, self._passed = bank, _leaves(read), passed

  def begin(self) -> list[jax.Array]:
    """Returns what is added to: zeros like an array [E,...] of the bank, or rows [L*E,...] of a total."""
    return [jnp.zeros_like(w) if total is None else total.reshape(-1, *w.shape[1:])
            for w, total in zip(jax.tree.leaves(self._bank), self._passed, strict=True)]

  def rows(self, e: jax.Array) -> list[jax.Array]:
    """Returns the row i32[] of expert e in each array of `begin`."""
    return [e if total is None else where.layer * where.whole.shape[1] + e
            for where, total in zip(self._read, self._passed, strict=True)]

  def end(self, made: list[jax.Array]) -> tuple[typing.Any, list[jax.Array | None]]:
    """Returns (gradients [E,...] of the bank, None where a total has them; those of totals) of `begin`'s."""
    pairs = list(zip(made, self._passed, strict=True))
    bank = [d if total is None else None for d, total in pairs]
    return (jax.tree.unflatten(jax.tree.structure(self._bank), bank),
            [total if total is None else d.reshape(total.shape) for d, total in pairs])

  def of_slices(self, bank: typing.Any) -> tuple[typing.Any, list[jax.Array | None]]:
    """Returns what `end` does, of gradients [E,...] of the whole bank."""
    made = jax.tree.leaves(bank)
    return self.end([d if total is None else _added(total, d, where.layer)
                     for d, total, where in zip(made, self._passed, self._read, strict=True)])


def of_read(read: typing.Any, passed: list[jax.Array | None]) -> typing.Any:
  """Returns the gradient of what `found` returned: that of its totals [L,E,...] alone."""
  leaves, tree = jax.tree.flatten(read, is_leaf=lambda w: isinstance(w, Slice))
  none: typing.Any = None
  return jax.tree.unflatten(tree, [Slice(none, none, total) if isinstance(w, Slice) else None
                                   for w, total in zip(leaves, passed, strict=True)])


def _added(total, own, layer):
  """total [L,E,...] with own [E,...] added at `layer`."""
  here = jax.lax.dynamic_index_in_dim(total, layer, 0)
  return jax.lax.dynamic_update_slice_in_dim(total, here + own[None], layer, 0)
