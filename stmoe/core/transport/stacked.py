"""Where a layer's slice of stacked arrays lies, for executors that read the arrays of an expert at a time.

A scan over layers gives every layer its slice [E,...] of arrays [L,E,...]. XLA copies a slice that a loop
over experts reads: the matrices of all experts, forward and once more backward. With `within` around a layer
an executor finds in which array the slices of its bank lie, and its loop reads that array. Gradients go to
the slices.

A slice is known by identity. Arrays that were made of slices (cast, mixed, split over devices) are read as
they are.
"""

import contextlib
import contextvars
import typing

from flax import struct
import jax

from stmoe import axes


@struct.dataclass
class Slice:
  """whole[layer]: whole [L,E,...], layer i32[]."""
  whole: jax.Array
  layer: jax.Array


# id of a slice -> the slice, so that no other array gets its id, and where it lies.
Known = dict[int, tuple[jax.Array, Slice]]
_known: contextvars.ContextVar[Known | None] = contextvars.ContextVar('known', default=None)
_alone: contextvars.ContextVar[bool] = contextvars.ContextVar('alone', default=False)


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


@contextlib.contextmanager
def alone() -> typing.Iterator[None]:
  """Inside, `wholes` gives nothing: a layer reads its slice alone, so that stacks need not be in memory."""
  token = _alone.set(True)
  try:
    yield
  finally:
    _alone.reset(token)


@contextlib.contextmanager
def within(arrays: list[jax.Array | None], unit: typing.Any, layer: jax.Array) -> typing.Iterator[None]:
  """Inside, `found` knows the arrays of `unit` as slices `layer`, i32[], of `arrays`, which `wholes` gave."""
  slices = zip(jax.tree.leaves(unit), arrays, strict=True)
  token = _known.set({id(own): (own, Slice(whole, layer)) for own, whole in slices if whole is not None})
  try:
    yield
  finally:
    _known.reset(token)


def found(bank: typing.Any) -> typing.Any:
  """Returns `bank` with a Slice in place of every array [E,...] of which it is known where the array lies."""
  known = _known.get() or {}
  return jax.tree.map(lambda w: known[id(w)][1] if id(w) in known else w, bank)


def one(w: jax.Array | Slice, e: jax.Array) -> jax.Array:
  """Returns [1,...]: of w [E,...] that of expert e, i32[]."""
  if not isinstance(w, Slice):
    return jax.lax.dynamic_index_in_dim(w, e, 0)
  rest = w.whole.shape[2:]
  at = jax.lax.dynamic_slice(w.whole, (w.layer, e, *(0 for _ in rest)), (1, 1, *rest))
  return at.reshape(1, *rest)
