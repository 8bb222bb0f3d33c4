"""Adapters beside the matrices of any model: what is computed, dropped, refused."""

import jax
import jax.numpy as jnp
from flax import nnx
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import modules
from stmoe import router_state as state
from stmoe.core import assignment
from stmoe.core import banks
from stmoe.core.units import adapted
from stmoe.experts import glu
from stmoe.parts import adapting
from tests.models import tiny

is_adapter = lambda path: any(entry.key == 'adapters' for entry in path)


def build(name, **adapter):
  """Returns (graphdef, params, router_state) of a tiny model with an adapter, whose numbers are drawn."""
  fields = tiny.MODELS[name] | dict(adapter=dict(name='lora', rank=2, **adapter))
  model = modules.maker(fields)(blocks=tiny.BLOCKS, rngs=nnx.Rngs(0))
  graph, params, routers = nnx.split(model, nnx.Param, state.RouterState)
  draw = lambda path, x: (0.3 * jax.random.normal(jax.random.key(len(str(path))), x.shape)
                          if is_adapter(path) and path[-1].key != 'magnitude' else x)
  return graph, jax.tree.map_with_path(draw, nnx.to_pure_dict(params)), nnx.to_pure_dict(routers)


def merged(made):
  """Returns the model with every matrix as one array."""
  model = adapting.view(nnx.merge(*made))
  for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    if isinstance(variable.get_value(), adapted.Adapted):
      setattr(adapting.owner(model, path), path[-1], variable.replace(variable.get_value().sum()))
  return model


@pytest.mark.slow
@pytest.mark.parametrize('name, dora', [
    pytest.param('heads', False, marks=pytest.mark.slow), ('lm', True),
    pytest.param('t5', True, marks=pytest.mark.slow), pytest.param('zoo', False, marks=pytest.mark.slow)])
def test_products_of_both_parts_are_products_with_the_sum(name, dora):
  made, batch = build(name, targets='*', dora=dora), tiny.batch(name, 2, 8)
  run = jax.jit(lambda model: model(batch)[0])
  whole, parts, base = run(merged(made)), run(adapting.view(nnx.merge(*made))), run(nnx.merge(*made))
  scale = np.abs(whole).max()
  np.testing.assert_allclose(parts, whole, atol=1e-5 * scale)
  assert np.abs(parts - base).max() > 1e-2 * scale


@pytest.mark.parametrize('executor', [
    'blocks', *(pytest.param(name, marks=pytest.mark.slow) for name in (
        'einsum', 'gather', 'ragged', 'pallas'))])
def test_experts_with_adapters_run_in_every_executor(executor):
  """A bank of Adapted matrices computes, forward and backward, what the bank of their sums does."""
  bank = glu.Glu(6, num_experts=3, d_ff=4, use_bias=True, init_scale=1.0, rngs=nnx.Rngs(0))
  low = {name: adapting.LowRank(getattr(bank, name), rank=2, scale=0.5, dora=True, rngs=nnx.Rngs(1))
         for name in ('wi', 'wg', 'wo')}
  x = jax.random.normal(jax.random.key(2), (2, 5, 6))
  a = assignment.cap(assignment.from_top_k(jax.nn.softmax(x[..., :3]), 2), 5)
  execute = banks.opening(lookup.executor(executor))

  def run(ab, x, whole):
    own = nnx.merge(*nnx.split(bank))
    for name, part in low.items():
      w = getattr(own, name)
      one = part.beside(w.get_value(), name).replace(**ab[name])
      setattr(own, name, w.replace(one.sum() if whole else one))
    return jnp.sum(jnp.sin(execute(x, a, own)))
  ab = {name: dict(a=part.a[...], b=jax.random.normal(jax.random.key(3), part.b.shape))
        for name, part in low.items()}
  grad = jax.jit(jax.value_and_grad(run, argnums=(0, 1)), static_argnums=2)
  (value, parts), (expected, sums) = grad(ab, x, False), grad(ab, x, True)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(lambda p, s: np.testing.assert_allclose(p, s, atol=1e-5), parts, sums)


def test_dropout_is_of_what_enters_the_adapter_and_in_training_only():
  made, batch = build('lm', targets='wi', dropout_rate=0.5), tiny.batch('lm', 2, 8)
  run = jax.jit(lambda train, key: adapting.view(nnx.merge(*made))(
      batch, train=train, key=key, tokens={'decoder': jnp.float32(16)})[0], static_argnums=0)
  first, second, again = (run(True, jax.random.key(n)) for n in (1, 2, 1))
  assert np.abs(first - second).max() > 1e-3
  np.testing.assert_array_equal(first, again)
  x, one = jnp.ones((20000, 4)), jnp.ones((4, 3))
  w = adapted.Adapted(0 * one, jnp.ones((4, 2)), jnp.ones((2, 3)), dropout_rate=0.25)
  np.testing.assert_allclose(w.times(x), 8)
  np.testing.assert_allclose(w.replace(key=jax.random.key(0)).times(x).mean(0), 8, rtol=2e-2)
  with pytest.raises(errors.UserError, match='dropout_rate=0.25 of an adapter: .*nearest: dropout_rate=0.0'):
    w.replace(key=jax.random.key(0)).sum()


@pytest.mark.parametrize('adapter, said', [
    (dict(targets='attension'), r"'attension'; nearest: attention \(there are: attention,"),
    (dict(targets='attention+router'), "no matrix is in 'router'"),
    (dict(targets='encoder/*'), "no matrix is in 'encoder/\\*'"),
    (dict(targets='wi', rank=9), r'adapter.rank=9: .* is 8 x 12, a rank of which is at most 8; nearest: 8')])
def test_bad_input_is_one_line(adapter, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    refused(**adapter)
  assert '\n' not in str(caught.value)


def refused(**adapter):
  fields = tiny.MODELS['depth'] | dict(adapter=dict(name='lora') | adapter)
  nnx.eval_shape(lambda: modules.maker(fields)(blocks=tiny.BLOCKS, rngs=nnx.Rngs(0)))
