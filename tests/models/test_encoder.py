"""The encoder for spans: against numpy, heads against their definitions, padding, microbatches, gradients."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe import router_state as state
from stmoe.targets import ids
from stmoe.train import router_losses as losses

BLOCKS = dict(
    d=dict(layer='dense', d_ff=12, activation='gelu', use_bias=True),
    s=dict(layer='moe', executor='einsum', group_size=6,
           router=dict(name='switch', num_experts=3, capacity_factor=(None, None), jitter=0.0),
           experts=dict(name='mlp', d_ff=12, activation='gelu', use_bias=True, init_scale=1.0)))
GATE = dict(name='vmoe', num_experts=4, k=2, capacity_factor=(None, None), noise_std=0.0)
MIXTURE = dict(name='span_mixture', group_size=2, router=GATE,
               experts=dict(name='mlp', d_ff=6, activation='gelu', init_scale=1.0))
FIELDS = dict(name='encoder', vocab_size=11, d_model=8, num_heads=2, head_dim=4, length=6,
              encoder=(('d', 2),), head=dict(name='span_head'))
SPARSE = dict(encoder=(('ds', 1),), head=MIXTURE)
LENGTHS = (6, 3, 5, 0)                                               # real tokens of each row
WEIGHTED = dict(balance=(0.1, 'mean'), importance=(0.1, 'mean'))


@functools.cache
def build(sparse=False):
  """The model, with biases and a head that decide something."""
  model = lookup.recipe('model', FIELDS | (SPARSE if sparse else {}))(blocks=BLOCKS, rngs=nnx.Rngs(0))
  graphdef, params, _ = nnx.split(model, nnx.Param, state.RouterState)
  leaves, tree = jax.tree.flatten(nnx.to_pure_dict(params))
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return graphdef, tree.unflatten([a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)])


def batch(pad=0):
  rng = np.random.default_rng(0)
  real = np.arange(6 + pad) < np.array(LENGTHS)[:, None]
  ids = np.where(real, np.pad(rng.integers(0, 11, (4, 6)), ((0, 0), (0, pad))), 0)
  found = dict(encoder_input_tokens=ids, encoder_segment_ids=real * 1,
               encoder_positions=np.where(real, np.arange(6 + pad), 0),
               decoder_target_tokens=np.array([[1, 4], [0, 2], [4, 4], [0, 0]]),
               decoder_loss_weights=np.repeat(real.any(1)[:, None], 2, axis=1) * 1)
  return {name: jnp.asarray(a, jnp.int32) for name, a in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def forward(graphdef, params, batch):
  return nnx.merge(graphdef, params)(batch)


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(graphdef, params, batch, tokens, count):
  def loss(params):
    logits, aux = nnx.merge(graphdef, params)(batch, train=True, tokens=tokens)
    return ids.task(logits, batch)['ce'] / count + losses.router(aux, WEIGHTED)[0]
  return jax.value_and_grad(loss)(params)


def layer_norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-12) * p['scale'] + p['bias']


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def reference(params, ids):
  """float64[T,2] logits of one text without padding, written from the definition."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x = layer_norm(p['embed']['table'][ids] + p['positions'][0, :len(ids)], p['norm'])
  for layer in range(2):
    block = jax.tree.map(lambda a, layer=layer: a[layer], p['encoder']['segments'][0]['blocks'][0])
    a, d = block['attention'], block['layer']
    q, k, v = ((x @ a[f'w{n}'] + a[f'b{n}']).reshape(-1, 2, 4) for n in 'qkv')
    weights = np.exp(np.einsum('qhp,khp->hqk', q, k) / 2)
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum('hqk,khp->qhp', weights, v).reshape(-1, 8) @ a['wo'] + a['bo']
    x = layer_norm(x + y, block['attention_norm'])
    x = layer_norm(x + gelu(x @ d['wi'] + d['bi']) @ d['wo'] + d['bo'], block['layer_norm'])
  return x @ p['head']['w'] + p['head']['b']


def test_a_text_is_computed_as_defined_and_padding_is_hidden():
  graphdef, params = build()
  logits, aux = forward(graphdef, params, batch())
  assert logits.shape == (4, 2, 6) and not aux
  for row, length in enumerate(LENGTHS[:3]):
    want = reference(params, np.asarray(batch()['encoder_input_tokens'])[row, :length])
    np.testing.assert_allclose(logits[row, :, :length].T, want, rtol=1e-4, atol=1e-4)
  hidden = np.arange(6) >= np.array(LENGTHS)[:, None]
  assert (np.asarray(logits)[np.repeat(hidden[:, None], 2, 1)] < -1e8).all()
  probs = jax.nn.softmax(logits, axis=-1)                            # of an empty row, too
  assert np.isfinite(probs).all()


@pytest.mark.slow
def test_the_mixture_is_the_gated_sum_of_its_experts():
  graphdef, params = build(sparse=True)
  model = nnx.merge(graphdef, params)
  head, rng = model.head, np.random.default_rng(2)
  x = jnp.asarray(rng.normal(size=(4, 6, 8)), jnp.float32)
  seen = []
  model.encoder = lambda *a: (x, {})
  model.head = lambda x, ctx, carry: seen.append(ctx) or head(x, ctx, carry)
  logits, aux = model(batch())
  [ctx] = seen
  assert ctx.tokens == 3 and list(aux) == ['head']
  gates = np.asarray(jax.nn.softmax(x[:, 0] @ head.router.w[...]))   # [B, E]
  e = {name: np.asarray(getattr(head.experts, name)[...]) for name in ('wi', 'wo')}
  for row, length in enumerate(LENGTHS[:3]):
    best = np.argsort(-gates[row])[:2]
    y = sum(gates[row, i] / gates[row, best].sum() * (gelu(np.asarray(x[row]) @ e['wi'][i]) @ e['wo'][i])
            for i in best)
    want = y @ head.out.w[...] + head.out.b[...]
    np.testing.assert_allclose(logits[row, :, :length].T, want[:length], rtol=1e-4, atol=1e-4)
  assert aux['head'].load.sum() == 2 * 3                             # the empty row is not routed


def test_padding_does_not_count():
  """Neither in values, losses of routers and gradients, nor in loads."""
  graphdef, params = build(sparse=True)
  plain, aux = forward(graphdef, params, batch())
  assert aux['encoder_01'].load.sum() == sum(LENGTHS)
  wide = lambda tree: dict(tree, positions=jnp.pad(tree['positions'], ((0, 0), (0, 6), (0, 0))))
  longer = lookup.recipe('model', FIELDS | SPARSE | dict(length=12))(blocks=BLOCKS, rngs=nnx.Rngs(0))
  longer = nnx.split(longer, nnx.Param, state.RouterState)[0]
  padded, more = forward(longer, wide(params), batch(pad=6))
  np.testing.assert_allclose(padded[:, :, :6], plain, rtol=1e-4, atol=1e-4)
  for name in aux:
    for loss, value in aux[name].losses.items():
      np.testing.assert_allclose(more[name].losses[loss], value, rtol=1e-4, atol=1e-6, err_msg=loss)


@pytest.mark.slow
def test_microbatches_and_gradients():
  graphdef, params = build(sparse=True)
  count = batch()['decoder_loss_weights'].sum()
  tokens = nnx.merge(graphdef, params).count_tokens(batch())
  whole = value_and_grad(graphdef, params, batch(), tokens, count)
  half = jax.tree.map(lambda n: n / 2, tokens)
  parts = [value_and_grad(graphdef, params, {k: a[i:i + 2] for k, a in batch().items()}, half, count / 2)
           for i in (0, 2)]
  joined = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
  for (path, a), b in zip(jax.tree.leaves_with_path(joined), jax.tree.leaves(whole)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5, err_msg=jax.tree_util.keystr(path))
  still = [jax.tree_util.keystr(path) for path, a in jax.tree.leaves_with_path(whole[1])
           if not jnp.abs(a).max() and path[-1].key != 'bk']         # softmax does not see biases of keys
  assert not still                                                   # every parameter learns, routers too


@pytest.mark.parametrize('fields, said', [
    (dict(length=5), 'model.length=5, but rows have data.inputs_length=6 tokens; nearest: model.length=6'),
    (dict(head=MIXTURE | dict(group_size=3)), 'group_size=3 does not divide the 4 sequences'),
    (dict(head=MIXTURE | dict(gate='last')), "gate='last'"),
    (dict(head=dict(name='span_hed')), 'nearest: span_head'),
    (dict(head=MIXTURE | dict(router=dict(name='expert_choice', num_experts=2))), 'nearest: vmoe')])
def test_mistakes(fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    make = lookup.recipe('model', FIELDS | fields)
    nnx.eval_shape(lambda: make(blocks=BLOCKS, rngs=nnx.Rngs(0))(batch())[0])
  assert '\n' not in str(caught.value)
