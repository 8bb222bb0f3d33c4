"""Every executor against `einsum`: values and all gradients, on made and on routed assignments."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import lookup
from stmoe.conform import execution
from stmoe.conform import executor as of_executor
from stmoe.core import assignment
from stmoe.experts import mlp
from tests.experts import conv
from tests.experts import generic as generic_banks
from tests.experts import sloped

G, S, D, F, E = execution.G, execution.S, execution.D, 12, execution.E
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


# Banks that no file of `stmoe/experts` holds: plain arrays, and two that kernels do not run.
OTHERS = {
    'narrow': lambda: Narrow(jax.random.normal(jax.random.key(9), (E, D, D // 2)), jnp.ones((E, D))),
    'biased': lambda: Biased(jax.random.normal(jax.random.key(8), (E, D, D)), jnp.ones((E, D))),
    'conv': lambda: generic_banks.of(conv.Conv, D, E),
    'sloped': lambda: generic_banks.of(sloped.Sloped, D, E),
}
BANKS = [*lookup.available('experts'), *OTHERS]


run, made, assert_same, activations = execution.run, execution.made, execution.same, execution.activations


@functools.cache
def bank_of(name):
  """The bank called `name`, of OTHERS or of a file."""
  return OTHERS[name]() if name in OTHERS else execution.bank(name)


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  with execution.small_blocks():
    yield


@pytest.mark.parametrize('executor', FAST)
@pytest.mark.parametrize('k, capacity', [(1, 5), (2, 9), (4, S)])
def test_made_assignments(executor, k, capacity):
  execution.choices(executor, k, capacity)


@pytest.mark.parametrize('executor', FAST)
def test_tokens_without_an_expert_may_hold_anything(executor):
  x, a = activations(), made('padding', 2, 9)
  served = jnp.zeros((G, S), bool).at[jnp.arange(G)[:, None], a.token].max(assignment.live(a))
  got = run(jnp.where(served[..., None], x, jnp.nan), a.weight, bank_of('mlp'), a, executor=executor)
  assert_same(got, run(x, a.weight, bank_of('mlp'), a, executor='einsum'))


# Programs of their own on one CPU, for every bank and router in the default suite. An all-to-all of one
# device is `gather` or `pallas` (tests/core/transport/test_exchange.py has several), `pallas` is `blocks`
# (tests/core/test_pallas.py has the kernels), and `ragged` is a reference.
OWN = ['blocks', 'gather']
PAIRS = [pytest.param(executor, bank, marks=[pytest.mark.slow] * (executor not in OWN and bank != 'mlp'))
         for executor in FAST for bank in BANKS]


@pytest.mark.parametrize('executor, bank', PAIRS)
def test_banks(executor, bank):
  execution.against(executor, made('random', 2, 9), bank_of(bank))


@pytest.mark.parametrize('executor', FAST)
def test_bfloat16_activations(executor):
  of_executor.bfloat16_in_and_out(executor)


@pytest.mark.parametrize('executor', FAST)
def test_virtual_experts_never_reach_a_matmul(executor):
  of_executor.virtual_experts_never_reach_a_matmul(executor)


@pytest.mark.slow
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


@pytest.mark.parametrize('name', lookup.available('router'))
@pytest.mark.parametrize('executors', [
    OWN, pytest.param([name for name in FAST if name not in OWN], marks=pytest.mark.slow)],
    ids=['own', 'others'])
def test_routers(name, executors):
  execution.agree(name, executors)


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
