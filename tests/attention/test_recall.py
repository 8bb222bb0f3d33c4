"""Attention of one query to a cache equals that of `attend`; a step of decoding turns no cache."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe.attention import attention
from stmoe.parts import attend
from stmoe.attention import recall
from tests.parts import test_cache

draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('heads, width, dtype, biased, sinks', [
    (1, 8, 'float32', 0, False), (4, 8, 'float32', 4, True), (2, 8, 'bfloat16', 0, True),
    (2, 1, 'bfloat16', 0, False), (4, 8, 'float32', 1, False)])
def test_one_query_sees_what_attend_shows_it(heads, width, dtype, biased, sinks):
  sizes = (1, 4), (6, heads), (6, heads)
  q, k, v = (draw(i, 3, *size, width).astype(dtype) for i, size in enumerate(sizes))
  mask = (jnp.arange(6) < jnp.array([[6], [2], [1]]))[:, None, None]
  bias = draw(3, 1, biased, 1, 6) if biased else None
  own = draw(4, 4) if sinks else None
  got = recall.one(q, recall.kept(k, v), mask=mask, bias=bias, scale=0.3, sinks=own)
  with_sinks = attention._with_sinks if sinks else lambda own, *given: given
  k, v, mask, bias = with_sinks(own, k, v, mask, bias)
  want = attend.attend(q, k, v, mask=mask, bias=bias, scale=0.3)
  assert got.dtype == want.dtype and got.shape == want.shape
  tolerance = 1e-6 if dtype == 'float32' else 1e-2
  np.testing.assert_allclose(got.astype('float32'), want.astype('float32'), rtol=tolerance, atol=tolerance)


def transposes(name, model):
  """The shapes of what a compiled step of decoding transposes, of at least four axes as caches have them."""
  given = test_cache.batch(name)
  _, cache = jax.eval_shape(lambda model: model.begin(given, 9), model)
  ids, real = jnp.zeros(3, jnp.int32), jnp.ones(3, bool)
  text = jax.jit(lambda model, cache: model.step(ids, real, cache)).lower(model, cache).compile().as_text()
  shapes = [shape.split(',') for shape in re.findall(r'= \w+\[([\d,]+)\]\S* transpose\(', text)]
  return [tuple(map(int, shape)) for shape in shapes if len(shape) > 3]


@pytest.mark.parametrize('name, fields', [
    ('lm', dict(num_kv_heads=2, attention=dict(name='attention', sinks=True))),
    pytest.param('t5', {}, marks=pytest.mark.slow),
    pytest.param('lm', dict(attention=dict(name='switch_head', executor='einsum', router=dict(
        name='sigma_moe', num_experts=3, k=2))), marks=pytest.mark.slow)], ids=['lm', 't5', 'switch_head'])
def test_a_step_turns_no_cache(name, fields):
  model = test_cache.build(name, test_cache.DENSE, **fields)
  places = {16, 10, 7} & {n for shape in transposes(name, model) for n in shape}
  assert not places                                                  # of a prompt, of a T5's text and source
