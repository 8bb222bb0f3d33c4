"""What the checks of executors, banks and routers compute: a bank on an assignment, by any executor."""

import contextlib
import functools
import typing
from unittest import mock

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import walk
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.conform import generic
from stmoe.core import assignment
from stmoe.core import contract

G, S, D, E = 2, 16, 8, 4
# (y [G,S,D'], (gradients to x, the weights and the bank)).
Values = tuple[jax.Array, tuple[typing.Any, typing.Any, typing.Any]]
# How the choices of `made` may lie.
CASES = ('random', 'one_takes_all', 'empty', 'ties', 'padding', 'nothing')


@contextlib.contextmanager
def small_blocks():
  """Within, `blocks` has blocks so small that every expert needs several of both sizes, and of one row.

  A turn has several blocks where there are as many rows as `FEW`, and one where there are fewer.
  """
  sizes = lambda rows, experts: (1,) if rows <= G * S else (2, 6)
  with mock.patch.multiple(walk, sizes=sizes, FEW=G * S, TOGETHER=3):
    yield


@generic.cached
def bank(name: str, **fields) -> typing.Any:
  """Returns the bank `name` of E experts of width D."""
  return generic.bank(name, D, E, **fields)


@functools.partial(jax.jit, static_argnames='executor')
def run(x: jax.Array, weight: jax.Array, bank: typing.Any, a: assignment.Assignment,
        key: jax.Array | None = None, *, executor: str) -> Values:
  """Returns (y, gradients to x [G,S,D], weight [G,N] and the bank).

  The cotangent of y differs in every entry.
  """
  execute = lookup.module('executor', executor).execute
  y, pull = jax.vjp(lambda x, weight, bank: execute(x, a.replace(weight=weight), bank, key), x, weight, bank)
  cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)
  return y, pull(cotangent)


def same(got: typing.Any, want: typing.Any, tolerance: float = 2e-5, what: str = '') -> None:
  """Raises AssertionError unless trees are equal, up to `tolerance` of the largest entry of each array."""
  trees: typing.Any = [jax.tree.structure(tree) for tree in (got, want)]
  assert trees[0] == trees[1], 'other arrays'
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    g, w = np.asarray(g, np.float32), np.asarray(w, np.float32)
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1e-3, np.abs(w).max()), err_msg=what)


def activations(dtype: typing.Any = jnp.float32) -> jax.Array:
  """Returns x [G,S,D]."""
  return jax.random.normal(jax.random.key(7), (G, S, D), dtype)


def made(case: str, k: int, capacity: int) -> assignment.Assignment:
  """Returns an Assignment of `k` choices per token; `case` of CASES says how the choices lie."""
  rng = np.random.default_rng(len(case) + k)
  logits = rng.normal(size=(G, S, E))
  if case == 'one_takes_all':
    logits[..., 2] += 100
  if case == 'empty':
    logits[..., 1] -= 100
    logits[0, :, 3] -= 50
  if case == 'ties':
    logits[:] = 0
  edges = assignment.from_top_k(jax.nn.softmax(jnp.asarray(logits, jnp.float32)), k)
  mask = np.ones((G, S), bool)
  if case == 'padding':
    mask[0, 5:] = False
    mask[1, ::3] = False
  if case == 'nothing':
    mask[:] = False
  return assignment.cap(assignment.kill_padding(edges, jnp.asarray(mask)), capacity)


def against(executor: str, a: assignment.Assignment, bank: typing.Any) -> None:
  """Raises AssertionError unless `executor` computes what `einsum` does of `bank` on Assignment `a`."""
  x = activations()
  same(run(x, a.weight, bank, a, executor=executor), run(x, a.weight, bank, a, executor='einsum'),
       what=executor)


def choices(executor: str, k: int, capacity: int) -> None:
  """Raises AssertionError unless `executor` is right about every one of CASES, with `k` choices a token."""
  x, mlp, dropped = activations(), bank('mlp'), 0
  for case in CASES:
    a = made(case, k, capacity)
    dropped += int((a.slot == capacity).sum())
    want = run(x, a.weight, mlp, a, executor='einsum')
    same(run(x, a.weight, mlp, a, executor=executor), want, what=case)
    nan = jnp.where(assignment.live(a), a.weight, jnp.nan)           # dead edges may hold anything
    same(run(x, nan, mlp, a, executor=executor), want, what=f'{case}, with dead edges of NaN')
  assert dropped > 0, 'nothing was dropped'


@generic.cached
def routed(name: str, **fields) -> tuple:
  """Returns (x, router parameters, route, assignment) of a router with generic fields, with padding."""
  router = generic.router(name, D, E, seed=3, **fields)
  graph, params, *rest = nnx.split(router, nnx.Param, ...)
  mask = jnp.arange(S) < jnp.array([[S], [11]])
  numbers = jnp.broadcast_to(jnp.arange(S), (G, S))
  ctx = contract.Context.of(numbers, mask, key=jax.random.key(0, impl='unsafe_rbg'), train=True,
                            given=generic.given(router, G, S))

  def route(x, params):
    router = nnx.merge(graph, params, *rest)
    return router(x, ctx, modules.init_carry(router, x)).assignment
  x = activations() * 20                             # far from uniform, so that routers with noise drop too
  return x, params, route, jax.jit(route)(x, params)


def agree(name: str, executors: typing.Sequence[str], **fields) -> None:
  """Raises AssertionError unless `executors` compute what `einsum` does with what router `name` chose."""
  x, params, route, a = routed(name, **fields)
  others = [executor for executor in executors if executor != 'einsum']
  if isinstance(a, assignment.SoftAssignment):                       # einsum is its meaning and only executor
    for executor in others:
      _refuses(executor, x, a)
    return
  pull = jax.jit(lambda dweight: jax.vjp(lambda x, p: route(x, p).weight, x, params)[1](dweight))
  results = {}
  for executor in ['einsum', *others]:
    y, (dx, dweight, dbank) = run(x, a.weight, bank('mlp'), a, executor=executor)
    results[executor] = y, dx, pull(dweight), dbank
  for executor in others:
    same(results[executor], results['einsum'], what=executor)


def _refuses(executor, x, a):
  """Raises AssertionError unless the executor refuses a SoftAssignment."""
  try:
    lookup.module('executor', executor).execute(x, a, bank('mlp'))
  except errors.UserError as error:
    assert "nearest: executor='einsum'" in str(error), error
  else:
    raise AssertionError(f'executor {executor} runs a SoftAssignment')
