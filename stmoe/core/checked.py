"""Routers and sub-layers are made and called here: a mistake in one is a line that names its file.

`route` and `answer` compare types and shapes. These are known before anything is computed, so the comparison
costs a step nothing. `faults` finds what only numbers show: tests call it, and so does training where a loss
is not finite.
"""

import inspect
import pathlib
import traceback
import typing

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import plugins
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.errors import UserError

# What a mistake in a router's code raises; running out of memory or an interrupt is no such mistake.
MISTAKES = (TypeError, ValueError, AttributeError, LookupError, NameError, ArithmeticError, AssertionError)
ROOT = pathlib.Path(__file__).resolve().parents[2]


def file(router: object) -> str:
  """Returns the file of a router, of its class, or of a function, as text: in the package from 'stmoe' on."""
  kind = router if inspect.isclass(router) or inspect.isfunction(router) else type(router)
  try:
    return _shown(inspect.getfile(kind))
  except (TypeError, OSError):                                       # defined in a session
    return kind.__qualname__


def _shown(path):
  path = pathlib.Path(path).resolve()
  return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def made(recipe: typing.Callable, d_model: int, *, rngs, **fields) -> typing.Any:
  """Returns what `recipe` makes; raises UserError for a mistake in its file, with the line."""
  return _run(getattr(recipe, 'func', recipe), recipe, d_model, rngs=rngs, **fields)


def built(recipe: typing.Callable, d_model: int, rngs) -> typing.Any:
  """Returns the router that `recipe` makes; raises UserError for a mistake in its file, with the line."""
  router = made(recipe, d_model, rngs=rngs)
  number = getattr(router, 'num_experts', None)
  if not isinstance(number, int) or number < 1:
    raise UserError(f'{file(router)}: {type(router).__name__} has num_experts={number!r}; wanted: the number '
                    'of experts that it routes to, set as self.num_experts')
  return router


def route(router: contract.Router, x: jax.Array, ctx: contract.Context,
          carry: contract.Carry) -> contract.Routed:
  """Returns the answer of `router` for x [G,S,D]; raises UserError, with its file, for a wrong answer."""
  routed = _run(type(router), router, x, ctx, carry)
  wrong = next(_wrong(router, routed, x, carry), None)
  if wrong:
    raise UserError(f'{file(router)}: {wrong}')
  return routed


def answer(layer: typing.Any, x: jax.Array, ctx: contract.Context, carry: contract.Carry,
           call: typing.Callable | None = None) -> typing.Any:
  """Returns layer(x [B,T,D], ctx, carry), the answer of a sub-layer or of what stands around a block.

  Raises UserError, with the file of `layer`, for a mistake in it and for a wrong answer.

  Args:
    call: called in place of the layer; None = the layer itself.
  """
  given = _run(type(layer), call or layer, x, ctx, carry)
  wrong = next(_wrong_answer(given, x, carry), None)
  if wrong:
    raise UserError(f'{file(layer)}: {wrong}')
  return given


def alike(module: typing.Any, x: jax.Array) -> jax.Array | None:
  """Returns module(x) of a virtual expert, [G,S,D] as x is, or None; raises UserError for another answer."""
  y = _run(type(module), module, x)
  if y is not None and getattr(y, 'shape', None) != x.shape:
    raise UserError(f'{file(module)}: it returned {told(y)}; wanted: [{",".join(map(str, x.shape))}], as x '
                    'is, or None for zeros')
  return y


def returned(function: typing.Callable, given: typing.Any, fits: bool, wanted: str) -> typing.Any:
  """Returns `given`, which `function` returned; raises UserError, with its file, unless that `fits`."""
  if not fits:
    own = getattr(function, 'func', function)                        # fields may be bound
    name = getattr(own, '__name__', type(own).__name__)
    raise UserError(f'{file(own)}: {name} returned {told(given)}; wanted: {wanted}')
  return given


def _wrong_answer(given, x, carry):
  """Yields what is wrong with the answer (y, aux, carry) for x [B,T,D]."""
  if not isinstance(given, tuple) or len(given) != 3:
    yield f'it returned {told(given)}; wanted: (y, aux, carry)'
    return
  y, aux, after = given
  if not _is(y, x.dtype, x.shape):
    yield f'it returned y {told(y)}; wanted: {told(x)}, as x is'
  reports = aux.values() if isinstance(aux, dict) else [] if aux is None else [aux]
  for report in reports:
    if not isinstance(report, contract.Aux):
      yield (f'it reported {told(report)}; wanted: None, contract.Aux(losses, load, metrics), or '
             'a dict of them by the parts that its attribute `reports` names')
  kept = lambda carry: jax.tree.map(told, contract.apart(carry)[0])
  if not isinstance(after, dict):
    yield f'it returned the carry {told(after)}; wanted: the dict that it was given'
  elif kept(after) != kept(carry):
    yield (f'it returned the carry {kept(after)}; wanted: one like it was given, {kept(carry)}; its '
           'method init_carry(x [B,T,D]) returns what is there before the first layer')


def _run(kind, call, *args, **kwargs):
  """`call(*args)`; a mistake in the file of class `kind`, or in a plugin's, is a UserError with the line."""
  try:
    return call(*args, **kwargs)
  except MISTAKES as error:
    try:
      path = inspect.getfile(kind)
    except (TypeError, OSError):
      raise error from None
    paths = {path, *(str(plugin.path) for plugin in plugins.known())}              # of what `kind` calls
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in paths]
    if not places:
      raise
    text = ' '.join(str(error).split()) or type(error).__name__
    raise UserError(f'{_shown(places[-1].filename)}, line {places[-1].lineno}: {text}') from error


def told(x: typing.Any) -> str:
  """What an array is, as in 'float32[4,2]'; of anything else the type."""
  if isinstance(x, (tuple, list)):
    return f'a {type(x).__name__} of {len(x)}'
  if not hasattr(x, 'shape'):
    return type(x).__name__
  return f'{x.dtype}[{",".join(map(str, x.shape))}]'


def _is(x, dtype, shape):
  return hasattr(x, 'shape') and x.dtype == dtype and x.shape == tuple(shape)


def _wrong(router, routed, x, carry):
  """Yields what is wrong with the answer of a router for x [G,S,D]."""
  if not isinstance(routed, contract.Routed):
    yield f'it returned a {type(routed).__name__}; wanted: contract.Routed(assignment, aux, carry)'
  elif not isinstance(routed.aux, contract.Aux):
    yield f'Routed.aux is a {type(routed.aux).__name__}; wanted: contract.Aux(losses, load, metrics)'
  else:
    yield from _wrong_assignment(router, routed.assignment, x)
    yield from _wrong_aux(router, routed.aux, getattr(routed.assignment, 'num_virtual', 0))
    kept = lambda carry: jax.tree.map(told, carry)
    if kept(routed.carry) != kept(carry):
      yield (f'it returned the carry {kept(routed.carry)}; wanted: one like it was given, {kept(carry)}; its '
             'method init_carry(x [B,T,D]) returns what is there before the first layer')


def _wrong_assignment(router, a, x):
  groups, size = x.shape[:2]
  soft = isinstance(a, assignment.SoftAssignment)
  if not soft and not isinstance(a, assignment.Assignment):
    wanted = 'an Assignment or a SoftAssignment'
    if isinstance(a, assignment.Edges):
      wanted = 'assignment.cap(edges, capacity), which gives them their slots'
    yield f'Routed.assignment is a {type(a).__name__}; wanted: {wanted}'
    return
  for name, value, wanted in (('num_tokens', a.num_tokens, size), ('num_experts', a.num_experts,
                                                                  router.num_experts)):
    if value != wanted:
      yield f'the assignment has {name}={value}; wanted: {wanted}'
  if soft:
    fields, shape = dict(dispatch='float32', combine='float32'), a.dispatch.shape
  else:
    fields = dict(token='int32', expert='int32', slot='int32', weight='float32')
    shape = (groups, *a.token.shape[1:2])
  for name, dtype in fields.items():
    if not _is(getattr(a, name), dtype, shape):
      yield f'assignment.{name} is {told(getattr(a, name))}; wanted: {dtype}[{",".join(map(str, shape))}]'


def _wrong_aux(router, aux, num_virtual):
  sizes = router.num_experts, router.num_experts + num_virtual       # virtual experts may be counted, too
  if not any(_is(aux.load, 'float32', (size,)) for size in sizes):
    yield f'aux.load is {told(aux.load)}; wanted: float32[{router.num_experts}], one entry an expert'
  for field in ('losses', 'metrics', 'statistics'):
    if not isinstance(getattr(aux, field), dict):
      yield f'aux.{field} is a {type(getattr(aux, field)).__name__}; wanted: a dict'
      return
  for field in ('losses', 'metrics'):
    for name, value in getattr(aux, field).items():
      if not _is(value, 'float32', ()):
        yield f'aux.{field}[{name!r}] is {told(value)}; wanted: float32[], one number'
  for name, value in aux.statistics.items():
    if not isinstance(value, contract.Statistic):
      yield (f'aux.statistics[{name!r}] is {told(value)}; wanted: contract.total(x), mean(x, count) or '
             'largest(x), which say how parts of a batch are put together')


def not_finite(a: contract.Assigned) -> jax.Array:
  """Returns i32[], how many live edges of Assignment `a` (or weights of a SoftAssignment) are no numbers."""
  if isinstance(a, assignment.SoftAssignment):
    dispatch, combine = (jnp.sum(~jnp.isfinite(w), dtype=jnp.int32) for w in a.masks())
    return dispatch + combine
  return jnp.sum(~jnp.isfinite(a.weight) & (a.expert < a.dead), dtype=jnp.int32)


def faults(router: contract.Router, a: contract.Assigned, mask: jax.Array) -> list[str]:
  """Returns lines about what is wrong in an Assignment of arrays, not of shapes; [] if nothing is.

  Args:
    a:    Assignment or SoftAssignment of groups [G,S].
    mask: bool[G,S] real tokens.
  """
  lines, say = [], lambda text: lines.append(f'{file(router)}: {text}')
  if count := int(not_finite(a)):
    say(f'{count} live edges have a weight that is no finite number')
  if isinstance(a, assignment.SoftAssignment):
    return lines
  token, expert, slot, real = map(np.asarray, (a.token, a.expert, a.slot, mask))   # here nothing is compiled
  if np.any((expert < 0) | (expert > a.dead)):
    say(f'expert ids are not all from 0 to {a.dead}, {a.dead} being a dead edge')
  if np.any((token < 0) | (token >= a.num_tokens)):
    say(f'tokens are not all from 0 to {a.num_tokens - 1}')
  elif np.any((expert < a.dead) & ~np.take_along_axis(real, token, axis=1)):
    say('padding has live edges; wanted: assignment.kill_padding(edges, ctx.mask) before cap')
  live = expert < a.num_experts
  group, _ = np.nonzero(live)
  taken = np.unique(np.stack([group, expert[live], slot[live]]), axis=1)
  if np.any(live & ((slot < 0) | (slot >= a.capacity))) or taken.shape[1] < len(group):
    say('a slot of an expert is outside of its capacity or taken twice; wanted: assignment.cap')
  return lines
