"""Every executor against `einsum`: values and all gradients, on made and on routed assignments."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import walk
from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe.core import assignment
from stmoe.core import contract
from stmoe.experts import mlp
from tests.experts import conv
from tests.experts import generic as generic_banks
from tests.routers import generic

G, S, D, F, E = 2, 16, 8, 12, 4
FAST = [name for name in lookup.available('executor') if name != 'einsum']


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Narrow:
  """A bank whose rows come out with another width, normalised and shifted."""
  w: jax.Array
  b: jax.Array

  def __call__(self, rows, key=None):
    return rows.map(lambda x: x - x.mean(-1, keepdims=True)).shift(self.b).linear(self.w)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Biased:
  """A bank whose empty rows do not give zeros, so that a gradient through them would show."""
  w: jax.Array
  b: jax.Array

  def __call__(self, rows, key=None):
    return rows.linear(self.w, self.b).map(jnp.cos)


# Banks that no file of `stmoe/experts` holds: plain arrays, and one that is not made of products.
OTHERS = {
    'narrow': lambda: Narrow(jax.random.normal(jax.random.key(9), (E, D, D // 2)), jnp.ones((E, D))),
    'biased': lambda: Biased(jax.random.normal(jax.random.key(8), (E, D, D)), jnp.ones((E, D))),
    'conv': lambda: generic_banks.of(conv.Conv, D, E),
}
BANKS = [*lookup.available('experts'), *OTHERS]


@functools.cache
def bank_of(name):
  """The bank called `name`, of OTHERS or of a file."""
  return OTHERS[name]() if name in OTHERS else generic_banks.build(name, D, E)


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Blocks so small that every expert needs several of both sizes; and of one row, for one choice a token."""
  shipped = walk.sizes, walk.FEW
  walk.sizes, walk.FEW = lambda *_: (2, 6), G * S
  yield
  walk.sizes, walk.FEW = shipped


@functools.partial(jax.jit, static_argnames='executor')
def run(x, weight, bank, a, key=None, *, executor):
  """(y, gradients to x, weight and the bank) under a cotangent that differs in every entry."""
  execute = lookup.module('executor', executor).execute
  y, pull = jax.vjp(lambda x, weight, bank: execute(x, a.replace(weight=weight), bank, key), x, weight, bank)
  cotangent = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype)
  return y, pull(cotangent)


def assert_same(got, want, tolerance=2e-5):
  """Asserts equal trees, up to `tolerance` of the largest entry of each array."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    g, w = np.asarray(g, np.float32), np.asarray(w, np.float32)
    np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1e-3, np.abs(w).max()))


def activations(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(7), (G, S, D), dtype)


def made(case, k, capacity):
  """An Assignment of `k` choices per token; `case` says how the choices lie."""
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


CASES = ['random', 'one_takes_all', 'empty', 'ties', 'padding', 'nothing']


@pytest.mark.parametrize('executor', FAST)
@pytest.mark.parametrize('k, capacity', [(1, 5), (2, 9), (4, S)])
def test_made_assignments(executor, k, capacity):
  x, bank = activations(), bank_of('mlp')
  dropped = 0
  for case in CASES:
    a = made(case, k, capacity)
    dropped += int((a.slot == capacity).sum())
    want = run(x, a.weight, bank, a, executor='einsum')
    assert_same(run(x, a.weight, bank, a, executor=executor), want)
    # Dead edges may hold anything.
    nan = jnp.where(assignment.live(a), a.weight, jnp.nan)
    got = run(x, nan, bank, a, executor=executor)
    assert_same(got, want)
  assert dropped > 0


# Programs of their own on one CPU, for every bank and router in the default suite. An all-to-all of one
# device is `gather` or `pallas` (tests/core/transport/test_exchange.py has several), `pallas` is `blocks`
# (tests/core/test_pallas.py has the kernels), and `ragged` is a reference.
OWN = ['blocks', 'gather']
PAIRS = [pytest.param(executor, bank, marks=[pytest.mark.slow] * (executor not in OWN and bank != 'mlp'))
         for executor in FAST for bank in BANKS]


@pytest.mark.parametrize('executor, bank', PAIRS)
def test_banks(executor, bank):
  x, bank, a = activations(), bank_of(bank), made('random', 2, 9)
  assert_same(run(x, a.weight, bank, a, executor=executor), run(x, a.weight, bank, a, executor='einsum'))


@pytest.mark.parametrize('executor', FAST)
def test_bfloat16_activations(executor):
  x, bank, a = activations(jnp.bfloat16), bank_of('mlp'), made('padding', 2, 9)
  y, (dx, dweight, dbank) = run(x, a.weight, bank, a, executor=executor)
  assert y.dtype == dx.dtype == jnp.bfloat16
  assert dweight.dtype == jax.tree.leaves(dbank)[0].dtype == jnp.float32
  want = run(x.astype(jnp.float32), a.weight, bank, a, executor='einsum')
  assert_same((y, (dx, dweight, dbank)), want, tolerance=0.03)


@pytest.mark.parametrize('executor', FAST)
def test_virtual_experts_never_reach_a_matmul(executor):
  expert = jnp.asarray(np.random.default_rng(0).integers(0, E + 2, size=(G, S, 2)))
  edges = assignment.from_choices(expert, jnp.ones((G, S, 2)), E, num_virtual=2)
  a, x, bank = assignment.cap(edges, 9), activations(), bank_of('mlp')
  assert int((expert >= E).sum()) > 0
  assert_same(run(x, a.weight, bank, a, executor=executor), run(x, a.weight, bank, a, executor='einsum'))


def test_blocks_of_the_shipped_sizes(shipped_sizes):
  size = 800                     # 690 + 1 + 0 + 109: several blocks of an expert, one, none
  expert = np.repeat([0, 1, 3], [690, 1, 109])
  edges = assignment.from_choices(jnp.asarray(expert)[None, :, None], jnp.ones((1, size, 1)), E)
  a = assignment.cap(edges, size)
  x = jax.random.normal(jax.random.key(0), (1, size, D))
  bank = bank_of('mlp')
  assert_same(run(x, a.weight, bank, a, executor='blocks'), run(x, a.weight, bank, a, executor='einsum'))


@pytest.mark.parametrize('executor', ['gather', 'blocks'])
def test_dropout_draws_masks_from_the_key_alone(executor):
  bank = mlp.Mlp(D, num_experts=E, d_ff=F, dropout_rate=0.5, rngs=nnx.Rngs(0))
  x, a = activations(), made('random', 2, S)
  execute = jax.jit(lambda key: lookup.module('executor', executor).execute(x, a, bank, key))
  first, again, other = execute(jax.random.key(0)), execute(jax.random.key(0)), execute(jax.random.key(1))
  np.testing.assert_array_equal(first, again)
  assert float(jnp.abs(first - other).max()) > 1e-3
  # Forward and backward must draw the same masks: y is piecewise linear in wo, so <dwo, wo> = <y, cotangent>.
  y, (_, _, dbank) = run(x, a.weight, bank, a, jax.random.key(0), executor=executor)
  cotangent = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
  np.testing.assert_allclose((dbank.wo[...] * bank.wo[...]).sum(), (y * cotangent).sum(), rtol=1e-4)


ROUTERS = lookup.available('router')


@functools.cache
def routed(name):
  """(x, router parameters, route, assignment) of a router with generic arguments; padding included."""
  router = generic.build(name, D, E, seed=3)
  graph, params, rest = nnx.split(router, nnx.Param, ...)
  mask = jnp.arange(S) < jnp.array([[S], [11]])
  whole = jnp.broadcast_to(jnp.arange(S), (G, S))
  ctx = contract.Context(mask=mask, ids=whole, positions=whole, segments=mask.astype(jnp.int32),
                         step=jnp.int32(0), tokens=jnp.float32(mask.sum()),
                         key=jax.random.key(0, impl='unsafe_rbg'), train=True)

  def route(x, params):
    router = nnx.merge(graph, params, rest)
    return router(x, ctx, modules.init_carry(router, x)).assignment
  x = activations() * 20                             # far from uniform, so that routers with noise drop too
  return x, params, route, jax.jit(route)(x, params)


@pytest.mark.parametrize('name', ROUTERS)
@pytest.mark.parametrize('executors', [
    OWN, pytest.param([name for name in FAST if name not in OWN], marks=pytest.mark.slow)],
    ids=['own', 'others'])
def test_routers(name, executors):
  x, params, route, a = routed(name)
  if isinstance(a, assignment.SoftAssignment):                       # einsum is its meaning and only executor
    for executor in executors:
      with pytest.raises(errors.UserError, match="nearest: executor='einsum'"):
        lookup.module('executor', executor).execute(x, a, bank_of('mlp'))
    return
  pull = jax.jit(lambda dweight: jax.vjp(lambda x, p: route(x, p).weight, x, params)[1](dweight))
  results = {}
  for executor in ['einsum', *executors]:
    y, (dx, dweight, dbank) = run(x, a.weight, bank_of('mlp'), a, executor=executor)
    results[executor] = y, dx, pull(dweight), dbank
  for executor in executors:
    assert_same(results[executor], results['einsum'])


@pytest.mark.parametrize('k', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gather_is_made_of_gathers(k):
  a, x, bank = made('random', k, 9), activations(), bank_of('mlp')
  program = lambda executor: run.lower(x, a.weight, bank, a, executor=executor).as_text()
  assert 'stablehlo.scatter' not in program('gather') and 'stablehlo.gather' in program('gather')
  assert 'stablehlo.scatter' in program('einsum')                    # so that the check above can fail


@pytest.mark.slow
def test_gather_with_expert_choice_sums_over_segments():
  probs = jax.nn.softmax(jax.random.normal(jax.random.key(2), (G, S, E)))
  a, x, bank = assignment.cap(assignment.from_experts_choice(probs, 5), 5), activations(), bank_of('mlp')
  for executor in FAST:
    assert_same(run(x, a.weight, bank, a, executor=executor), run(x, a.weight, bank, a, executor='einsum'))
