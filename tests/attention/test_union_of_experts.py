"""Heads that select tokens: with and without room, cached, packed, counted. Its numbers: tests/oracles."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.analysis import flops
from stmoe.attention import attention
from stmoe.attention import union_of_experts
from stmoe.configs import common
from stmoe.core import metrics
from stmoe.parts import rotary
from stmoe.parts import visible
from stmoe.surgery import union_of_experts as surgery
from tests.attention import calls
from tests.parts import test_cache

D, H, P, T = 8, 4, 4, 6
X = jax.random.normal(jax.random.key(0), (2, T, D))


def build(**fields):
  layer = union_of_experts.UnionOfExperts(D, num_heads=H, head_dim=P, rngs=nnx.Rngs(0), **fields)
  layer.router_w[...] = 5 * jax.random.normal(jax.random.key(1), (D, H))
  return layer


def call(layer, x=X, **fields):
  """(y, Aux) of a layer in a causal stack of whole rows."""
  ctx = calls.context(*x.shape[:2], causal=True, **fields)
  seen = visible.Visible(mask=visible.causal(ctx.segments), turn=rotary.table(ctx.positions, P))
  y, aux, _ = jax.jit(lambda layer, x: layer(x, ctx.replace(visible=seen), {}))(layer, x)
  return y, aux


def test_with_all_heads_and_tokens_it_is_plain_attention():
  plain = attention.Attention(D, num_heads=H, head_dim=P, use_bias=True, rngs=nnx.Rngs(0))
  for bias in (plain.bq, plain.bk, plain.bv, plain.bo):
    bias[...] = jax.random.normal(jax.random.key(2), bias.shape)
  names = [f'{kind}{part}' for kind in 'wb' for part in 'qkvo']
  pieces = surgery.cut({name: getattr(plain, name)[...] for name in names}, H)
  ctx = calls.context(2, T)
  seen = visible.Visible(mask=visible.causal(ctx.segments), turn=rotary.table(ctx.positions, P))
  want = calls.call(plain, X, seen)
  for fields in (dict(positions='true'), dict(select='causal')):
    layer = build(k=H, share=1.0, use_bias=True, allow_causal=True, **fields)
    for name, value in pieces.items():
      getattr(layer.heads, name)[...] = value
    np.testing.assert_allclose(call(layer)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('fields', [dict(gate='multiply'), pytest.param(
    dict(positions='true', nope_dim=2), marks=pytest.mark.slow)])
def test_room_for_all_is_what_decoding_computes(fields):
  layer = build(select='causal', share=1.0, **fields)
  y, aux = call(layer)
  alone, other = call(layer, alone=True)
  np.testing.assert_allclose(y, alone, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(aux.load, other.load)
  assert aux.load.sum() == 2 * T * H / 2 and aux.metrics['drop_frac'] == 0
  small = call(build(select='causal', share=0.4, **fields))[1]       # two places a head
  assert small.load.max() <= 4 and 0 < small.metrics['drop_frac'] < 0.7


@pytest.mark.parametrize('fields', [dict(gate='straight', use_bias=True), pytest.param(
    dict(positions='true', nope_dim=2), marks=pytest.mark.slow)])
def test_it_decodes_as_it_evaluates(fields):
  made = dict(name='union_of_experts', select='causal', share=1.0, **fields)
  test_cache.assert_cached_equals_whole('lm', test_cache.build('lm', test_cache.DENSE, attention=made))


def test_who_looks_ahead():
  """Of T - 1 earlier tokens, how many outputs does the last token change?"""
  late, changed = X.at[:, -1].add(2.0), {}
  for select in ('data', 'causal'):
    layer = build(select=select, allow_causal=True)
    a, b = call(layer)[0], call(layer, late)[0]
    changed[select] = int(jnp.sum(jnp.any(jnp.abs(a - b)[:, :-1] > 1e-6, axis=-1)))
  assert changed['data'] > 0 and changed['causal'] == 0
  with pytest.raises(errors.UserError, match="in a causal stack .* nearest: select='causal'"):
    call(build())
  assert 'later ones too' in build().undecodable and build(select='causal').undecodable is None


def test_numbers_of_microbatches_are_those_of_the_batch():
  mask = jnp.arange(T) < jnp.array([T, T, 2, 3])[:, None]
  x = jax.random.normal(jax.random.key(3), (4, T, D))
  layer = build(allow_causal=True)
  tell = lambda rows, parts: call(layer, x[rows], mask=mask[rows], tokens=mask.sum() / parts)[1]
  whole, halves = tell(slice(None), 1), [tell(slice(first, first + 2), 2) for first in (0, 2)]
  merged = metrics.merge(jax.tree.map(lambda *parts: jnp.stack(parts), *halves))
  assert 0 < whole.metrics['drop_frac'] < 1 and 0 < whole.metrics['filled_frac'] < 1
  for name, value in whole.metrics.items():
    np.testing.assert_allclose(merged.metrics[name], value, rtol=1e-5, err_msg=name)


def test_two_packed_rows_are_two_rows():
  layer = build(select='causal', share=1.0)
  halves = X[:1].reshape(2, T // 2, D)
  apart = call(layer, halves)[0].reshape(1, T, D)
  segments = jnp.repeat(jnp.array([[1, 2]]), T // 2, axis=1)
  positions = jnp.arange(T)[None] % (T // 2)
  ctx = calls.context(1, T, causal=True, segments=segments, positions=positions)
  seen = visible.Visible(mask=visible.causal(segments), turn=rotary.table(positions, P))
  packed = jax.jit(lambda layer, x: layer(x, ctx.replace(visible=seen), {})[0])(layer, X[:1])
  np.testing.assert_allclose(packed, apart, rtol=1e-4, atol=1e-5)


def cost(**attention_fields):
  attention_fields = dict(name='union_of_experts', allow_causal=True, **attention_fields)
  c = common.config()
  c.model = dict(name='lm', vocab_size=11, d_model=D, num_heads=H, head_dim=P, layers=(('d', 1),),
                 attention=attention_fields)
  c.blocks = dict(d=dict(layer='dense', d_ff=4))
  c.data = common.data('stdlib', length=16)
  return flops.active_per_token(c)['forward']


def test_cost_falls_with_the_share_of_tokens():
  projections, pairs = 2 * 4 * D * H * P, 4 * 16 * H * P
  whole = cost(share=1.0)                                            # the gate is passed by all tokens
  assert whole - cost(share=0.5) == 0.5 * projections + 0.75 * pairs
  assert whole - cost(share=0.25) == 0.75 * projections + 15 / 16 * pairs
