"""The executor `pallas` as accelerators run it (kernels in their portable form), and what it keeps.

That it equals `einsum` as CPUs run it: test_conformance.py.
"""

import functools
import types

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import walk
from stmoe.core import assignment
from stmoe.core.execute import blocks
from stmoe.core.execute import pallas
from stmoe.core.execute import ragged
from stmoe.experts import glu
from stmoe.experts import mlp
from tests.core import test_conformance as conformance

run, made, bank_of = conformance.run, conformance.made, conformance.bank_of


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(walk, 'sizes', lambda *_: (2, 6))
    patch.setattr(walk, 'FEW', 0)
    yield


@pytest.fixture
def by_kernels(monkeypatch):
  """The executor takes the side of accelerators; the kernels' own choice stays that of the platform."""
  monkeypatch.setattr(pallas, 'target', types.SimpleNamespace(choose=lambda name, cpu, tpu, gpu: gpu))


def gradients(execute, x, weight, bank, a, key=None):
  """(y, gradients to x, weight and the bank), not cached between executors of one name."""
  y, pull = jax.vjp(lambda x, weight, bank: execute(x, a.replace(weight=weight), bank, key), x, weight, bank)
  return y, pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


CASES = (1, 5, 'padding'), (2, 9, 'empty'), (4, 16, 'random')


@pytest.mark.parametrize('bank, k, capacity, case', [
    pytest.param(bank, *case, marks=[pytest.mark.slow] * (bank not in ('mlp', 'lora', 'sloped')))
    for bank in conformance.BANKS for case in (CASES if bank == 'mlp' else CASES[1:2])])
def test_kernels_equal_einsum(by_kernels, bank, k, capacity, case):
  x, a, bank = conformance.activations(), made(case, k, capacity), bank_of(bank)
  nan = jnp.where(assignment.live(a), a.weight, jnp.nan)             # dead edges may hold anything
  got = jax.jit(functools.partial(gradients, pallas.execute))(x, nan, bank, a)
  conformance.assert_same(got, run(x, a.weight, bank, a, executor='einsum'))


def test_kernels_with_expert_choice(by_kernels):
  probs = jax.nn.softmax(jax.random.normal(jax.random.key(2), (conformance.G, conformance.S, conformance.E)))
  a, x = assignment.cap(assignment.from_experts_choice(probs, 5), 5), conformance.activations()
  got = jax.jit(functools.partial(gradients, pallas.execute))(x, a.weight, bank_of('mlp'), a)
  conformance.assert_same(got, run(x, a.weight, bank_of('mlp'), a, executor='einsum'))


def test_kernels_in_bfloat16(by_kernels):
  x, bank, a = conformance.activations(jnp.bfloat16), bank_of('glu'), made('padding', 2, 9)
  y, (dx, dweight, dbank) = jax.jit(functools.partial(gradients, pallas.execute))(x, a.weight, bank, a)
  assert y.dtype == dx.dtype == jnp.bfloat16
  assert dweight.dtype == jax.tree.leaves(dbank)[0].dtype == jnp.float32
  want = run(x.astype(jnp.float32), a.weight, bank, a, executor='einsum')
  conformance.assert_same((y, (dx, dweight, dbank)), want, tolerance=0.03)


def test_dropout_of_forward_and_backward_is_the_same(by_kernels):
  bank = mlp.Mlp(conformance.D, num_experts=conformance.E, d_ff=conformance.F, dropout_rate=0.5,
                 rngs=nnx.Rngs(0))
  x, a = conformance.activations(), made('random', 2, conformance.S)
  y, (_, _, dbank) = gradients(pallas.execute, x, a.weight, bank, a, jax.random.key(0))
  cotangent = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
  # y is linear in wo: <dwo, wo> = <y, cotangent>.
  np.testing.assert_allclose((dbank.wo[...] * bank.wo[...]).sum(), (y * cotangent).sum(), rtol=1e-4)


# What a layer keeps from forward to backward.
T, D, F, E = 256, 128, 1024, 8


def kept(f, x, parameters):
  """Bytes that the forward of f(x, parameters) hands to its backward, besides its own arguments."""
  def forward(x, parameters):
    y, pull = jax.vjp(f, x, parameters)
    given = {id(v) for v in jax.tree.leaves((x, parameters))}
    return y, [v for v in jax.tree.leaves(pull) if id(v) not in given]
  memory = jax.jit(forward).lower(x, parameters).compile().memory_analysis()
  out = jax.eval_shape(f, x, parameters)
  return memory.output_size_in_bytes - out.size * out.dtype.itemsize


def sparse(execute, bank, a):
  """(f, parameters) of a sparse layer on x [1,T,D] with a fixed assignment, whose weights are parameters."""
  return lambda x, p: execute(x, a.replace(weight=p[0]), p[1]), (a.weight, bank)


def dense(width, gated):
  """(f, parameters) of a dense layer that keeps the results of its products and nothing else."""
  @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
  def f(x, w):
    h = jax.nn.gelu(x @ w[0])
    return (h * (x @ w[1]) if gated else h) @ w[2]
  shapes = (D, width), (D, width) if gated else (1, 1), (width, D)
  return f, [jnp.ones(shape) for shape in shapes]


@pytest.mark.parametrize('k', [1, 2, 8])
@pytest.mark.parametrize('gated', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_keeps_what_a_dense_layer_of_the_same_active_width_does(by_kernels, k, gated):
  edges = assignment.from_top_k(jax.nn.softmax(jax.random.normal(jax.random.key(3), (1, T, E))), k)
  a, x = assignment.cap(edges, T), jax.random.normal(jax.random.key(0), (1, T, D))
  bank = (glu.Glu if gated else mlp.Mlp)(D, num_experts=E, d_ff=F // k, activation='gelu', rngs=nnx.Rngs(0))
  (mine, mine_p), (floor, floor_p) = sparse(pallas.execute, bank, a), dense(F, gated)
  ratio = kept(mine, x, mine_p) / kept(floor, x, floor_p)
  assert 0.95 < ratio < 1.1, ratio
  if k == 8:                                                         # rows as wide as D, so that it can fail
    assert kept(sparse(ragged.execute, bank, a)[0], x, mine_p) > 1.5 * kept(floor, x, floor_p)


@pytest.mark.slow
def test_cpus_do_not_make_what_they_do_not_keep():
  a, x = made('random', 2, conformance.S), conformance.activations()
  bank = mlp.Mlp(conformance.D, num_experts=conformance.E, d_ff=512, rngs=nnx.Rngs(0))

  def loss(x, bank, execute):                                        # ten layers of one bank, scanned
    return jax.lax.scan(lambda x, _: (execute(x, a, bank), None), x, None, length=10)[0].sum()
  temporaries = lambda execute: jax.jit(jax.grad(functools.partial(loss, execute=execute))).lower(
      x, bank).compile().memory_analysis().temp_size_in_bytes
  assert temporaries(pallas.execute) < 1.1 * temporaries(blocks.execute)
