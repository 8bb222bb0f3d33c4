"""Banks in a stack of layers are read, and their gradients summed, where they lie: no copy of all experts."""

import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe.core import contract
from stmoe.core.transport import stacked
from stmoe.experts import mlp
from stmoe.parts import stack

E, D, F, L = 8, 12, 20, 3
SPARSE = dict(layer='moe', router=dict(name='switch', num_experts=E), experts=dict(name='mlp', d_ff=F),
              attention=False)


def of(block, train=False, **fields):
  """(loss of a stack of L sparse layers for x [2,6,D], the stack, x)."""
  made = stack.Stack(D, name='decoder', pattern=(('m', L),), blocks=dict(m=block), rngs=nnx.Rngs(0), **fields)
  x = jax.random.normal(jax.random.key(1), (2, 6, D))
  ctx = contract.Context.of(jnp.ones((2, 6), jnp.int32), train=train, key=jax.random.key(2))
  return (lambda made, x: jnp.square(made(x, ctx)[0]).sum()), made, x


def gradient(loss, made, x):
  """The compiled gradient of what `of` returns."""
  return jax.jit(jax.value_and_grad(lambda *given: loss(*given), (0, 1))).lower(made, x).compile()


def stored(program):
  """How many gradients of all experts' matrices of a layer a compiled program copies into a stack."""
  return len(re.findall(rf'f32\[{L},{E},(?:{D},{F}|{F},{D})\]\S* dynamic-update-slice\(', program.as_text()))


def copies(program):
  """How many slices of all experts' matrices a compiled program takes out of a stack."""
  return len(re.findall(rf'f32\[1,{E},(?:{D},{F}|{F},{D})\]\S* dynamic-slice\(', program.as_text()))


@pytest.mark.parametrize('executor, remat', [('pallas', 'elementwise'), ('blocks', 'none'),
                                             ('pallas', 'full')])
def test_loops_over_experts_read_the_stack(executor, remat, monkeypatch):
  loss, made, x = of(SPARSE | dict(executor=executor), remat=remat)
  inside = gradient(loss, made, x)
  monkeypatch.setattr(stacked, 'found', lambda bank: bank)
  outside = gradient(loss, made, x)
  assert copies(inside) == 0 < copies(outside)
  jax.tree.map(np.testing.assert_array_equal, inside(made, x), outside(made, x))


@pytest.mark.parametrize('remat, fields', [
    ('elementwise', dict(executor='pallas')), ('none', dict(executor='blocks')),
    ('elementwise', dict(executor='all_to_all_dropless')), ('elementwise', dict(executor='hops_dropless')),
    ('full', dict(executor='blocks', router=dict(name='smoe', num_experts=E, k=2)))], ids=str)
def test_gradients_are_summed_in_the_stack(remat, fields, monkeypatch):
  loss, made, x = of(SPARSE | fields, train=True, remat=remat)
  inside = gradient(loss, made, x)
  monkeypatch.setattr(stacked, 'summed', lambda units, arrays: (units, []))
  outside = gradient(loss, made, x)
  assert stored(inside) == 0 < stored(outside)
  assert inside.memory_analysis().temp_size_in_bytes < outside.memory_analysis().temp_size_in_bytes
  jax.tree.map(np.testing.assert_array_equal, inside(made, x), outside(made, x))


def test_a_loop_over_layers_has_gradients_of_their_own_arrays():
  blocks = SPARSE | dict(executor='blocks')
  loss, made, x = of(blocks, train=True)
  looped, layers, _ = of(blocks, train=True, scan_layers=False)
  value, (whole, dx) = gradient(loss, made, x)(made, x)
  other, (each, other_dx) = gradient(looped, layers, x)(layers, x)
  np.testing.assert_allclose([value, dx.sum()], [other, other_dx.sum()], rtol=1e-5)
  for n, unit in enumerate(each.segments[0]):
    for a, b in zip(jax.tree.leaves(whole.segments[0]), jax.tree.leaves(unit), strict=True):
      np.testing.assert_allclose(a[n], b, rtol=1e-4, atol=1e-6)


def test_codes_have_no_sums():
  packed = dict(name='packed', inner=SPARSE['experts'], bits=4)
  loss, made, x = of(SPARSE | dict(executor='blocks', experts=packed), train=True)
  _, totals = stacked.summed(made.segments[0], stacked.wholes(made.segments[0]))
  assert 0 < sum(total is None for total in totals) < len(totals)
  dx = jax.jit(jax.grad(lambda x: loss(made, x)))(x)
  assert bool(jnp.isfinite(dx).all()) and bool((dx != 0).any())


@pytest.mark.parametrize('remat', [False, True])
def test_a_bank_that_a_layer_uses_twice_has_the_sum_of_both(remat, monkeypatch):
  """With `remat` its turns are functions of their own, which no total passes: slices have gradients."""
  inner = dict(name='moe', router=SPARSE['router'], experts=SPARSE['experts'], executor='blocks')
  loss, made, x = of(dict(layer='chain_of_experts', inner=inner, remat=remat, attention=False), train=True)
  inside = gradient(loss, made, x)(made, x)
  monkeypatch.setattr(stacked, 'summed', lambda units, arrays: (units, []))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), inside,
               gradient(loss, made, x)(made, x))


def test_arrays_made_of_slices_are_read_as_they_are():
  stack_of = jax.vmap(lambda _: mlp.Mlp(D, num_experts=E, d_ff=F, rngs=nnx.Rngs(0)))(jnp.arange(L))
  own = jax.tree.map(lambda w: w[1], stack_of)
  with stacked.within(stacked.wholes(stack_of), own, jnp.int32(1)):
    found = stacked.found(own)
    np.testing.assert_array_equal(stacked.one(found.wi.get_value(), 2)[0], own.wi[2])
    cast = jax.tree.map(lambda w: w.astype(jnp.bfloat16), own)
    assert stacked.found(cast).wi.get_value() is cast.wi.get_value()
  assert stacked.found(own).wi.get_value() is own.wi.get_value()


def test_gradients_of_a_whole_bank_are_added_as_those_of_its_experts_are():
  own, total = jnp.arange(E * D, dtype=jnp.float32).reshape(E, D), jnp.ones((L, E, D))
  bank, read = dict(a=own, b=own), dict(a=stacked.Slice(total, jnp.int32(1)), b=own)
  gradients = stacked.Gradients(bank, read, [total, None])
  apart, passed = gradients.of_slices(dict(a=own, b=2 * own))
  np.testing.assert_array_equal(passed[0], total.at[1].add(own))
  assert apart['a'] is None and passed[1] is None
  np.testing.assert_array_equal(apart['b'], 2 * own)
  sums = gradients.begin()
  for e in range(E):
    sums = [a.at[row].add(own[e] * scale) for a, row, scale in zip(sums, gradients.rows(e), (1, 2))]
  jax.tree.map(np.testing.assert_array_equal, gradients.end(sums), (apart, passed))


@pytest.mark.parametrize('devices', [1, 2])
def test_on_several_devices_nothing_is_known_of_the_stack(devices):
  with jax.set_mesh(axes.make_mesh(expert=devices, devices=jax.devices()[:devices])):
    wholes = stacked.wholes(mlp.Mlp(D, num_experts=E, d_ff=F, rngs=nnx.Rngs(0)))
  assert all(w is None for w in wholes) == (devices > 1)
