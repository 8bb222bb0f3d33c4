"""Banks of experts are made here, so that a mistake in a bank is a line that names the bank's file.

A bank is called with rows in some layout and a key: `bank(rows, key=None) -> rows`. The rows it returns have
that layout and the type that came. A bank's arrays belong to experts or are shared by all of them
(`axes.per_expert`). Here the bank is run on shapes alone, as executors will run it: with all experts, with
one expert alone, and on rows sorted by expert. A bank that is stored in another form offers `opened`.
"""

import functools
import typing

import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core import checked
from stmoe.core import contract
from stmoe.core.transport import grouped
from stmoe.core.transport import layouts
from stmoe.errors import UserError

def made(recipe: typing.Callable, width: int, *, num_experts: int, out: int | None = None, rngs,
         **fields) -> contract.Bank:
  """Returns the bank of rows [.,width] -> [.,out] that `recipe` makes; raises UserError if it makes no bank.

  out: None = width. fields: other fields of the recipe.
  """
  bank = checked.made(recipe, width, num_experts=num_experts, rngs=rngs, **fields)
  wrong = next(faults(bank, num_experts, width, width if out is None else out), None)
  if wrong:
    raise UserError(f'{checked.file(bank)}: {wrong}')
  return bank


def opened(bank: contract.Bank) -> contract.Bank:
  """Returns the bank that executors run for `bank`: itself, or what its `opened` gives."""
  own = contract.offered(bank, 'opened')
  return bank if own is None else own()


def opening(execute: contract.Executor) -> contract.Executor:
  """Returns `execute` of [G,S,D] for banks as they are stored."""
  @functools.wraps(execute)
  def run(x, a, experts, key=None):
    y = execute(x, a, opened(experts), key)
    fits = getattr(y, 'ndim', 0) == 3 and y.shape[:2] == x.shape[:2]
    return checked.returned(execute, y, fits, f'{x.dtype}[{x.shape[0]},{x.shape[1]},width]')
  return run


def faults(bank: contract.Bank, num_experts: int, width: int, out: int) -> typing.Iterator[str]:
  """Yields lines about what is wrong with a bank of E = `num_experts` experts, rows [.,width] -> [.,out]."""
  bank = jax.eval_shape(opened, bank)
  shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), bank)
  named = jax.tree_util.tree_leaves_with_path(shapes)
  of_experts: list[tuple[str, jax.Array]] = []
  shared: list[tuple[str, jax.Array]] = []
  for (path, w), belongs in zip(named, jax.tree.leaves(axes.per_expert(bank)), strict=True):
    name = jax.tree_util.keystr(path, simple=True, separator='.').removesuffix('.value')
    (of_experts if belongs else shared).append((name, w))
  for name, w in of_experts:
    if w.shape[:1] != (num_experts,):
      yield f'{name} is {checked.told(w)}, of experts; wanted: first an axis of {num_experts} experts'
  yield from _of_all(shapes, num_experts, width, out)
  yield from _of_one(shapes, num_experts, width, out, shared)
  yield from _sorted(shapes, width, out)


def _of_all(bank, num_experts, width, out):
  rows, y = _run(bank, num_experts, width)
  if isinstance(y, Exception):
    yield f'it does not run on {checked.told(rows)}: {_line(y)}'
  elif not isinstance(y, layouts.Buckets):
    yield f'it returned {checked.told(y)}; wanted: its rows, as rows.linear and the like return them'
  elif y.x.shape != (*rows.shape[:2], out):
    yield f'it returned rows {checked.told(y.x)} for {checked.told(rows)}; wanted: width {out}'
  elif y.x.dtype != rows.dtype:
    yield f'it returned rows {checked.told(y.x)} for {checked.told(rows)}; wanted: {rows.dtype}'


def _of_one(bank, num_experts, width, out, shared):
  """Yields what goes wrong when `blocks` runs the bank: expert arrays are cut to one, shared arrays not."""
  rows, y = _run(_alone(bank), 1, width)
  if getattr(getattr(y, 'x', None), 'shape', None) == (*rows.shape[:2], out):
    return
  suspects = [f'{name} {checked.told(w)}' for name, w in shared if w.shape[:1] == (num_experts,)]
  if suspects:
    yield (f'{" and ".join(suspects)} without the logical axis \'expert\' would be shared by all experts, '
           f'but holds {num_experts}; wanted: axes.param(init, shape, \'expert\', ...)')
  else:
    failure = _line(y) if isinstance(y, Exception) else f'it returned {checked.told(y)}'
    yield (f'it does not run with one expert alone, {checked.told(rows)}: {failure}; wanted: no number of '
           'experts but that of its arrays')


def _sorted(bank, width, out):
  """Yields what goes wrong when dropless executors run the bank: on rows [M,D]."""
  rows = jax.ShapeDtypeStruct((5, width), jnp.bfloat16)
  if getattr(_shapes(_on_sorted, _alone(bank), rows), 'shape', None) != (5, out):
    yield ('it takes rows.x to be [E,R,D], which dropless executors do not have; wanted: '
           'rows.each(f, arrays), where f is what one expert does to rows [R,D]')


def _alone(bank):
  """The shapes of a bank of a single expert."""
  cut = lambda own, w: jax.ShapeDtypeStruct((1, *w.shape[1:]), w.dtype) if own else w
  return jax.tree.map(cut, axes.per_expert(bank), bank)


def _run(bank, num_experts, width):
  """(rows [E,R,D] as shapes, what a bank of shapes returns for these rows or the exception it raises)."""
  rows = jax.ShapeDtypeStruct((num_experts, num_experts + 2, width), jnp.bfloat16)
  return rows, _shapes(_on_buckets, bank, rows)


def _on_buckets(bank, x):
  return bank(layouts.Buckets(x))


def _on_sorted(bank, x):
  return grouped.forward(bank, x, grouped.One(), None)[0]


def _shapes(run, *args):
  """The shapes of what `run` returns, or the exception that it raises; a UserError is raised on.

  Of a function of this module JAX keeps what it has traced: of equal banks, one in every layer, one is run.
  """
  try:
    return jax.eval_shape(run, *args)
  except UserError:
    raise
  except Exception as error:
    return error


def _line(error):
  return ' '.join(str(error).split()) or type(error).__name__
