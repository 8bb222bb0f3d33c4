"""Packed banks: values of codes, any inner bank, prefixes of bits; executors see plain arrays."""

import functools
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.analysis import flops
from stmoe.core import banks
from stmoe.core.transport import layouts
from stmoe.surgery import sparse
from tests.core import test_conformance as conformance
from tests.train import tiny_run

D, E = 8, 4
MLP = dict(name='mlp', d_ff=12, use_bias=True, init_scale=1.0)


def packed(inner=MLP, num_experts=E, **fields):
  recipe = lookup.recipe('experts', dict(name='packed', inner=inner) | fields)
  return banks.made(recipe, D, num_experts=num_experts, rngs=nnx.Rngs(0))


def plain(inner=MLP):
  return lookup.recipe('experts', inner)(D, num_experts=E, rngs=nnx.Rngs(0))


def test_eight_bits_are_near_and_take_a_quarter():
  bank, inner = packed(bits=8), plain()
  rows = layouts.Buckets(jax.random.normal(jax.random.key(0), (E, 5, D)))
  got, want = bank(rows).x, inner(rows).x
  assert 0 < float(jnp.abs(got - want).max()) < 0.02 * float(jnp.abs(want).max())
  planes = bank.codes['wi'].planes[...]
  assert planes.dtype == jnp.uint8 and 4 * planes.nbytes == inner.wi[...].nbytes
  assert packed(bits=3).codes['wi'].planes.shape == (E, 3, D * 12 // 8)
  [(path, b)] = [pair for pair in nnx.to_flat_state(nnx.state(bank, nnx.Param)) if pair[0][-1] == 'bi']
  assert path == ('kept', 'bi') and b.shape == (E, 12)


@pytest.mark.parametrize('inner', [
    pytest.param(dict(name='lora', d_ff=12, rank=2), marks=pytest.mark.slow),
    dict(name='residual', d_ff=12, num_sublayers=2)], ids=str)
def test_any_bank_is_packed(inner):
  rows = layouts.Buckets(jax.random.normal(jax.random.key(0), (E, 3, D)))
  got, want = packed(inner, bits=8, group=2)(rows).x, plain(inner)(rows).x
  np.testing.assert_allclose(got, want, atol=0.03 * np.abs(want).max())


def test_an_expert_for_every_width():
  bank = packed(num_experts=3 * E, bits=4, widths=(2, 3, 4), kind='nested', group=4)
  opened = banks.opened(bank).inner
  assert opened.wi.shape == (3 * E, D, 12)
  whole = bank.codes['wi'].matrix()
  np.testing.assert_array_equal(opened.wi[2::3], whole)
  np.testing.assert_array_equal(opened.bi[0::3], opened.bi[2::3])
  error = [float(jnp.abs(opened.wi[j::3] - plain().wi[...]).mean()) for j in range(3)]
  assert error[0] > 1.5 * error[1] > 2.25 * error[2] > 0


@pytest.mark.parametrize('executor', ['gather', 'blocks', pytest.param('pallas', marks=pytest.mark.slow)])
def test_executors_run_rounded_rows_and_leave_the_codes(executor):
  bank = packed(activation_bits=8, smooth=True)
  graph, kept, state = nnx.split(bank, nnx.Param, ...)
  x, a = conformance.activations(), conformance.made('random', 2, 9)

  @functools.partial(jax.jit, static_argnums=2)
  def run(x, kept, executor):
    execute = banks.opening(lookup.executor(executor))
    loss = lambda x, kept: jnp.sum(jnp.cos(execute(x, a, nnx.merge(graph, kept, state))))
    return jax.grad(loss, (0, 1))(x, kept)
  conformance.assert_same(run(x, kept, executor), run(x, kept, 'einsum'))


def test_rows_are_on_a_grid():
  bank = packed(dict(name='linear', d_ff=D), bits=8, activation_bits=2)
  x = jnp.array([[[-1.0, 0.1, 0.9, 2.0, 0, 0, 0, 0]]] * E)
  near = jnp.array([-1.0, 0.0, 1.0, 2.0, 0, 0, 0, 0])                # a grid of -1, 0, 1 and 2
  np.testing.assert_allclose(bank(layouts.Buckets(x)).x[:, 0], jnp.einsum('i,eio->eo', near,
                             bank.codes['w'].matrix()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('fields, words', [
    (dict(group=5), 'group=5 does not divide 8 inputs; nearest: 4'),
    (dict(widths=(2, 5)), r'widths=\(2, 5\) of bits=4 for 4 experts; wanted: at most 4 bits')])
def test_mistakes_are_one_line(fields, words):
  with pytest.raises(errors.UserError, match=words):
    packed(**fields)


def test_products_are_counted_as_those_of_the_matrices():
  router = dict(name='st_moe', num_experts=4, k=2)
  cfg = tiny_run.config(pathlib.Path(), **{'blocks.m.router': router})
  inner, widths = cfg.blocks.m.experts.to_dict(), dict(kind='nested', widths=(2, 4))
  codes = sparse.changed(cfg, {'blocks.m.experts': dict(name='packed', inner=inner)})
  nested = sparse.changed(cfg, {
      'blocks.m.experts': dict(name='packed', inner=inner) | widths,
      'blocks.m.router': dict(name='d2moe', widths=(2, 4), inner=router)})
  assert flops.active_per_token(codes) == flops.active_per_token(nested) == flops.active_per_token(cfg)
