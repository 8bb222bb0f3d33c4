"""A function of a model that is larger than memory, computed piece by piece of its program.

The program of the function (its jaxpr) is cut so that a piece reads few arrays of the model: a scan over
layers becomes a piece a layer. All batches go through a piece before the next piece begins. So an array is
read once, or once a layer, and is held while its piece runs. A program of few arrays is a single piece.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import itertools
import math
import typing

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from stmoe.core.transport import stacked
from stmoe.core.units import scans
from stmoe.surgery import aside

MOST = 1 << 28                           # bytes of arrays that a piece reads, where the program can be cut
TOGETHER = 16                            # batches that go through a piece before the next piece


class Stored(typing.NamedTuple):
  """An array of a model: where the numbers are, an array or Deferred [...], and shape, dtype and sharding."""
  numbers: typing.Any
  like: jax.ShapeDtypeStruct

  def size(self) -> int:
    """Returns its bytes."""
    return math.prod(self.like.shape) * self.like.dtype.itemsize

  def whole(self) -> jax.Array:
    """Returns the array [...]."""
    return _placed(self.numbers, self.like, self.like.sharding)

  def part(self, i: int) -> jax.Array:
    """Returns the part i [...] along the first axis."""
    spread = self.like.sharding
    return _placed(self.numbers[i], self.like,
                   jax.sharding.NamedSharding(spread.mesh, jax.P(*spread.spec[1:])))


def each(function: Callable, arrays: typing.Any, like: typing.Any, batches: Iterable[tuple], *,
         most: float | None = None, advance: Callable[[float], None] = lambda part: None) -> Iterator:
  """Yields function(arrays, *batch) for every batch.

  Args:
    function: is traced once; its results are trees of arrays.
    arrays:   tree of arrays or `aside.Deferred`.
    like:     tree of their ShapeDtypeStructs, with shardings.
    batches:  tuples of trees of arrays, all of the same shapes.
    most:     bytes of arrays that a piece reads, where the program can be cut; None = MOST.
    advance:  called with parts of a batch that are computed; those of all batches add up to their number.
  """
  remaining, program = iter(batches), None
  while group := list(itertools.islice(remaining, TOGETHER)):
    program = program or _Program(function, arrays, like, group[0], MOST if most is None else most)
    yield from program(group, advance)


class _Program:
  """The program of `function`, in pieces; `batch` is one of those that it will be called with."""

  def __init__(self, function, arrays, like, batch, most):
    stored = list(map(Stored, jax.tree.leaves(arrays), jax.tree.leaves(like)))
    cut = sum(array.size() for array in stored) > most
    with stacked.alone() if cut else contextlib.nullcontext():
      closed, shape = jax.make_jaxpr(function, return_shape=True)(like, *batch)
    program, self._results = closed.jaxpr, jax.tree.structure(shape)
    self.names = program.debug_info.with_unknown_names()
    self.stored = dict(zip(program.invars, stored))
    self._given, self._ends = program.invars[len(stored):], program.outvars
    self._consts = dict(zip(program.constvars, closed.consts))
    pieces = list(_cut(_needed(program), self.stored, most))
    self._pieces = [(self._piece(eqns, after, most), after)
                    for eqns, after in _with_later(pieces, self._ends)]

  def __call__(self, batches, advance):
    """Returns a list of the function's results for `batches`."""
    step = 1 / sum(run.steps for run, _ in self._pieces)
    known = [self._consts | dict(zip(self._given, jax.tree.leaves(batch))) for batch in batches]
    for run, after in self._pieces:
      for values, new in zip(known, run(known, lambda: advance(step))):
        values |= new
        for var in values.keys() - after:
          del values[var]
    return [jax.tree.unflatten(self._results, [self.value(var, values) for var in self._ends])
            for values in known]

  def _piece(self, eqns, after, most):
    """The function of a list of dicts Var -> array that returns such a list of what the piece makes."""
    if len(eqns) == 1 and _over(eqns[0], self.stored) > most:
      return _Layers(self, eqns[0], after)
    return _Straight(self, eqns, after)

  def value(self, var, values, stored=None):
    """The value of a variable or literal, in a batch with `values`, where `stored` arrays were read."""
    if isinstance(var, core.Literal):
      return var.val
    if stored is not None and var in stored:
      return stored[var]
    return values[var] if var in values else self.stored[var].whole()

  def read(self, variables):
    """Dict Var -> array of those of `variables` that are arrays of the model."""
    return {var: self.stored[var].whole() for var in {*_vars(variables)} if var in self.stored}


class _Straight:
  """Equations that are one compiled function."""
  steps = 1

  def __init__(self, program, eqns, after):
    made = {var for eqn in eqns for var in eqn.outvars}
    self._program = program
    self._inputs = list(dict.fromkeys(var for eqn in eqns for var in _vars(eqn.invars) if var not in made))
    self._outputs = [var for eqn in eqns for var in eqn.outvars if var in after]
    effects = frozenset().union(*(eqn.effects for eqn in eqns))
    inner = core.Jaxpr((), self._inputs, self._outputs, eqns, effects, program.names)
    self._run = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(inner, ())))

  def __call__(self, known, advance):
    stored, made = self._program.read(self._inputs), []
    for values in known:
      arrays = self._run(*(self._program.value(var, values, stored) for var in self._inputs))
      made.append(dict(zip(self._outputs, jax.block_until_ready(arrays))))
      advance()
    return made


class _Layers:
  """A scan over arrays of the model, a layer at a time."""

  def __init__(self, program, eqn, after):
    p, self._program, self._after = eqn.params, program, after
    (self._consts, self._begin, self._over), self._outputs = _inputs(eqn), eqn.outvars
    self._order, self.steps = range(p['length'])[::-1 if p['reverse'] else 1], p['length']
    self._run = jax.jit(core.jaxpr_as_fun(p['jaxpr']))

  def __call__(self, known, advance):
    value, carried = self._program.value, len(self._begin)
    common = self._program.read(self._consts)
    consts = [[value(var, values, common) for var in self._consts] for values in known]
    states = [[value(var, values) for var in self._begin] for values in known]
    reports = [[None] * len(self._order) for _ in known]
    for i in self._order:
      layer = {var: self._program.stored[var].part(i) for var in {*_vars(self._over)}
               if var in self._program.stored}
      for at, values in enumerate(known):
        over = [layer[var] if var in layer else values[var][i] for var in self._over]
        ended = self._run(*consts[at], *states[at], *over)
        states[at], reports[at][i] = jax.block_until_ready(ended[:carried]), ended[carried:]
        advance()
      del layer, over, ended             # before the next layer is read
    return [self._made([*state, *map(jnp.stack, zip(*report))]) for state, report in zip(states, reports)]

  def _made(self, outputs):
    return {var: x for var, x in zip(self._outputs, outputs) if var in self._after}


def _vars(atoms):
  """The variables among variables and literals."""
  return [atom for atom in atoms if not isinstance(atom, core.Literal)]


def _needed(program):
  """The equations of `program` on which its results depend."""
  live, kept = {*_vars(program.outvars)}, []
  for eqn in reversed(program.eqns):
    if eqn.effects or live & {*eqn.outvars}:
      kept.append(eqn)
      live |= {*_vars(eqn.invars)}
  return kept[::-1]


def _cut(eqns, stored, most):
  """Yields lists of equations that read at most `most` bytes of arrays `stored`, or are a single equation."""
  piece, held = [], set()
  for eqn in eqns:
    read = {var for var in _vars(eqn.invars) if var in stored}
    if piece and _bytes(held | read, stored) > most:
      yield piece
      piece, held = [], set()
    piece.append(eqn)
    held |= read
  yield piece


def _bytes(variables, stored):
  return sum(stored[var].size() for var in variables)


def _over(eqn, stored):
  """The bytes of arrays of the model over which an equation is a scan."""
  if eqn.primitive.name != 'scan':
    return 0
  _, _, over = _inputs(eqn)
  return _bytes({var for var in _vars(over) if var in stored}, stored)


def _inputs(eqn):
  """(constants, state before the first layer, arrays [L,...] of all layers) of a scan."""
  state, over = scans.ends(eqn)
  return eqn.invars[:state], eqn.invars[state:over], eqn.invars[over:]


def _with_later(pieces, ends):
  """[(piece, Vars that are of use after it)] for the program with results `ends`."""
  later, pairs = {*_vars(ends)}, []
  for eqns in reversed(pieces):
    pairs.append((eqns, later))
    later = later | {var for eqn in eqns for var in _vars(eqn.invars)}
  return pairs[::-1]


def _placed(numbers, like, sharding):
  """A jax array of `numbers`; those that are read come in the dtype of `like` to where `sharding` says."""
  if not isinstance(numbers, aside.Deferred):
    return numbers
  read = np.asarray(numbers, like.dtype)
  return jax.make_array_from_callback(read.shape, sharding, lambda at: read[at])
