"""The span language model and momentum along depth: what a token sees; nothing depends on the layout.

Both hosts are tested: post-norm span attention (the paper's), and the pre-norm model of the compared layers.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from stmoe import lookup
from stmoe import router_state as state
from stmoe.attention import span_attention
from stmoe.core.units import kept
from stmoe.errors import UserError
from stmoe.surgery import layout
from tests.attention import calls

LENGTH, SPAN = 8, 3
KEY = jax.random.key(7)
INNER = dict(name='moe', executor='einsum', router=dict(name='smoe', num_experts=3, init_std=0.6),
             experts=dict(name='mlp', d_ff=6, init_scale=1.0, use_bias=True))


def wrap(layer, **fields):
  return dict(layer=layer, inner=INNER, **fields)


SIZES = dict(vocab_size=tiny.VOCAB, d_model=8, num_heads=2, head_dim=4)
# The paper's host: momentum accumulates in the Adam layer, passes a dense block (GLaM) and goes on in two
# scanned units. The other one has the robust layer on its residual stream. Noise only where it is momentum's.
HOSTS = dict(
    span_lm=(dict(name='span_lm', span=SPAN, layers=(('ad', 1), ('m', 2)), **SIZES), dict(
        a=wrap('adam_momentum', post_norm=True), m=wrap('momentum', mu=0.6, post_norm=True, dropout_rate=0.2),
        d=dict(layer='dense', d_ff=6, use_bias=True))),
    lm=(dict(name='lm', layers=(('mr', 2),), **SIZES), dict(
        m=wrap('momentum', mu=0.6, dropout_rate=0.2), r=wrap('robust_momentum', norm=False))))


@functools.cache
def build(host, **fields):
  """(graphdef, params, router_state) of a host, as `tiny.run` takes them."""
  model_fields, blocks = HOSTS[host]
  model = lookup.recipe('model', model_fields | fields)(blocks=blocks, rngs=nnx.Rngs(0))
  graphdef, params, routers = nnx.split(model, nnx.Param, state.RouterState)
  return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(routers)


@functools.cache
def whole():
  return tiny.batch('lm', 4, LENGTH, real=[[8], [3], [5], [8]])


# The momentum layers' carry is in tests/models/test_invariance.py by default.
@pytest.mark.slow
@pytest.mark.parametrize('host', ['span_lm', 'lm'])
def test_scan_with_rematerialisation_equals_a_loop_without(host):
  """Values and gradients, with noise: the state travels in the scan's carry and is computed again."""
  graphdef, _, routers = build(host, scan_layers=False)
  scanned = build(host, remat='full')
  loss, grads = tiny.run('lm', (graphdef, layout.unroll(scanned[1]), routers), whole(), KEY)
  tiny.assert_equal(tiny.run('lm', scanned, whole(), KEY), (loss, layout.roll(grads)))
  dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(grads) if not jnp.any(g)]
  assert not dead


@pytest.mark.slow
@pytest.mark.parametrize('remat', [name for name in kept.POLICIES if name != 'full'])
@pytest.mark.parametrize('host', HOSTS)
def test_all_policies_of_rematerialisation(host, remat):
  tiny.assert_equal(tiny.run('lm', build(host, remat=remat), whole(), KEY),
                    tiny.run('lm', build(host, remat='full'), whole(), KEY))


@pytest.mark.slow
def test_microbatches():
  made = build('span_lm')
  tiny.assert_equal(tiny.run('lm', made, whole(), parts=4), tiny.run('lm', made, whole()))


@pytest.mark.slow
def test_packing():
  """Two sequences in a row, or each in a row of its own followed by padding.

  A token's group is its row here, so the balance loss has other groups; tokens and cross entropy do not.
  """
  batch = tiny.batch('lm', 4, LENGTH, real=4)
  pack = lambda a: a.reshape(2, 2, LENGTH, *a.shape[2:])[:, :, :4].reshape(2, LENGTH, *a.shape[2:])
  packed = {key: pack(a) for key, a in batch.items()}
  packed['decoder_segment_ids'] += np.arange(LENGTH) >= 4
  logits, aux = forward(build('span_lm'), packed)
  apart, other = forward(build('span_lm'), batch)
  np.testing.assert_allclose(logits, pack(apart), rtol=1e-4, atol=1e-5)
  for name in aux:
    norms = [a[name].metrics['momentum_norm'] for a in (aux, other)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    np.testing.assert_array_equal(aux[name].load, other[name].load)


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, params, batch):
  return nnx.merge(graphdef, params, {})(batch)


def forward(made, batch):
  return _forward(made[0], made[1], batch)


def test_causality_and_reports():
  made, batch = build('span_lm'), tiny.batch('lm', 4, LENGTH)
  logits, aux = forward(made, batch)
  assert list(aux) == [f'decoder_{i:02d}' for i in (0, 2, 3)]  # the dense block reports nothing
  assert all(a.metrics['momentum_norm'] > 0 for a in aux.values())
  changed = batch | dict(decoder_input_tokens=batch['decoder_input_tokens'].at[:, 5].add(1) % tiny.VOCAB)
  other, _ = forward(made, changed)
  # Rows of an expert's product may be summed in another order.
  np.testing.assert_allclose(other[:, :5], logits[:, :5], atol=1e-5)
  assert (np.abs(other[:, 5:] - logits[:, 5:]).max(axis=(0, 2)) > 1e-3).all()


def attend(layer, x, visible):
  """By its definition: loops over rows, heads, queries and the positions before them, in float64."""
  x, pe = np.asarray(x, np.float64), np.asarray(visible.pe, np.float64)
  history = np.zeros((len(x), 0, x.shape[2])) if visible.history is None else visible.history
  source = np.concatenate([history, x], axis=1)
  segments = np.pad(visible.segments, ((0, 0), (history.shape[1], 0)), mode='edge')
  heads = lambda a, w: (a @ np.asarray(w[...])).reshape(*a.shape[:2], -1, layer.head_dim)
  q, k, v = heads(x, layer.wq), heads(source, layer.wk), heads(source, layer.wv)
  y, past = np.zeros(q.shape), history.shape[1]
  for b, t, h in np.ndindex(q.shape[:3]):
    scores, values = [], []
    for back in range(1, pe.shape[1] + 1):
      at = past + t - back
      seen = at >= 0 and segments[b, at] == segments[b, past + t]
      key, value = (k[b, at, h], v[b, at, h]) if seen else np.zeros((2, layer.head_dim))
      scores.append(q[b, t, h] @ (key + pe[:, -back]) / np.sqrt(layer.head_dim))
      values.append(value)
    weights = np.exp(scores) / np.exp(scores).sum()
    y[b, t, h] = weights @ np.array(values)
  return y.reshape(*x.shape[:2], -1) @ np.asarray(layer.wo[...])


@functools.cache
def attention():
  layer = span_attention.SpanAttention(6, num_heads=2, head_dim=3, init_scale=2.0, rngs=nnx.Rngs(0))
  normal = lambda seed, shape: jax.random.normal(jax.random.key(seed), shape)
  return layer, normal(1, (2, 5, 6)), normal(2, (3, SPAN))


@pytest.mark.parametrize('past', [0, 2, SPAN])
def test_span_attention_is_its_definition(past):
  layer, x, pe = attention()
  history = jax.random.normal(jax.random.key(3), (2, past, 6)) if past else None
  segments = jnp.array([[1, 1, 1, 1, 1], [1, 1, 2, 2, 0]])
  seen = span_attention.Visible(pe=pe, segments=segments, history=history)
  np.testing.assert_allclose(calls.call(layer, x, seen), attend(layer, x, seen), rtol=1e-4, atol=1e-5)


def test_a_long_row_is_its_blocks_with_history():
  layer, x, pe = attention()
  ones = jnp.ones((2, 5), jnp.int32)
  y = calls.call(layer, x, span_attention.Visible(pe=pe, segments=ones))
  # A history longer than the span.
  later = calls.call(layer, x[:, 4:], span_attention.Visible(pe=pe, segments=ones[:, 4:], history=x[:, :4]))
  np.testing.assert_allclose(later, y[:, 4:], rtol=1e-5, atol=1e-6)


def test_mistakes():
  with pytest.raises(UserError, match='model.span=0: a token looks back at least 1 position'):
    build('span_lm', span=0)
  graphdef, params, _ = build('span_lm')
  prefix = whole() | dict(decoder_causal_attention=whole()['decoder_segment_ids'])
  with pytest.raises(UserError, match="looks back only.*data.objective='lm'"):
    nnx.merge(graphdef, params, {})(prefix)
