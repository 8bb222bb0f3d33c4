"""Cached decoding against recomputation of the whole text, with all that allows it."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import walk
from stmoe import lookup
from tests.routers import generic

VOCAB, LENGTH = generic.VOCAB, 7


@pytest.fixture(autouse=True, scope='module')
def small_blocks():
  """Blocks of one size, which compile faster."""
  sizes, walk.sizes = walk.sizes, lambda *_: (2,)
  yield
  walk.sizes = sizes


SHAPES = dict(vocab_size=VOCAB, d_model=8, num_heads=4, head_dim=4)
REAL = np.array([4, 1, 3])                                           # tokens of the prompts, in 4 places
DENSE = dict(layer='dense', d_ff=12, activation='gelu', gated=True)
EXPERTS = dict(name='mlp', d_ff=8, init_scale=1.0)
ALONE = dict(attention=False)                                        # which many blocks need not have each
CHANNELS = {'smlp_deterministic', 'partial_prediction'}              # their tokens are channels, inside gmlp


def sparse(name, **changed):
  """A sparse layer with router `name`; where tokens were not alone, its capacity of 1 would drop some."""
  fields = generic.fields(name, capacity_factor=(0.5, 0.5), min_capacity=1) | changed
  return dict(layer='moe', router=dict(name=name, num_experts=4) | fields, experts=EXPERTS)


def wrapped(layer, inner, **fields):
  return dict(layer=layer, inner=dict(inner, name=inner['layer']) | fields.pop('inner', {})) | fields


def build(name, block, more=None, **fields):
  """A model of kind `name`: a dense block, then `block` twice, or those of `more` and one with attention."""
  decoder = (('d', 1), (''.join(more) + 'dx' if more else 'bx', 2))
  patterns = dict(lm=dict(layers=decoder), t5=dict(encoder=(('d', 1),), decoder=decoder))[name]
  blocks = dict(d=DENSE, b=block, x=DENSE | dict(attention=False)) | (more or {})
  recipe = lookup.recipe('model', dict(SHAPES, name=name) | patterns | fields)
  model = recipe(blocks=blocks, rngs=nnx.Rngs(0))
  nnx.update(model, jax.tree.map(lambda a: 30 * a if a.shape[-1] == 3 else a, nnx.state(model, nnx.Param)))
  return model


def batch(name, rng=0):
  """Whole texts: prompts of REAL tokens, which then go on to LENGTH places; the encoder's of a T5."""
  rng = np.random.default_rng(rng)
  ids = rng.integers(1, VOCAB, (len(REAL), LENGTH)).astype(np.int32)
  def side(stack, real):
    mask = np.arange(LENGTH) < real[:, None]
    return {f'{stack}_input_tokens': jnp.asarray(np.where(mask, ids, 0)),
            f'{stack}_segment_ids': jnp.asarray(mask * 1),
            f'{stack}_positions': jnp.asarray(np.arange(LENGTH) * mask)}
  if name == 'lm':
    return side('decoder', np.full(len(REAL), LENGTH))
  whole = side('decoder', np.full(len(REAL), LENGTH))
  whole['decoder_input_tokens'] = whole['decoder_input_tokens'].at[:, 0].set(0)
  return side('encoder', REAL) | whole


@jax.jit
def whole(model, batch, key=None):
  return model(batch, key=key, alone=True)[0]


@jax.jit
def cached(model, batch, key=None):
  """Logits [B,T,V] of a text of which every token is given; those before the end of the prompt are 0."""
  ids = batch['decoder_input_tokens']
  rows = jnp.arange(len(ids))
  if 'encoder_input_tokens' in batch:
    at, prompt = jnp.zeros(len(ids), jnp.int32), batch
  else:
    at, mask = jnp.asarray(REAL) - 1, jnp.arange(4) < jnp.asarray(REAL)[:, None]
    prompt = {key: a[:, :4] * mask for key, a in batch.items()}
  logits, cache = model.begin(prompt, LENGTH, key)

  def step(state, _):
    logits, cache, at = state
    real = at < LENGTH - 1                                           # rows that are finished rest
    following, cache = model.step(ids[rows, jnp.minimum(at + 1, LENGTH - 1)], real, cache)
    return (following, cache, at + 1), (logits, at)
  _, (logits, at) = jax.lax.scan(step, (logits, cache, at), length=LENGTH)
  return jnp.zeros((*ids.shape, VOCAB)).at[rows, at].set(logits, mode='drop')


def assert_cached_equals_whole(name, model, given=None, key=None):
  given = batch(name) if given is None else given
  expected, got = np.asarray(whole(model, given, key)), np.asarray(cached(model, given, key))
  for row, real in enumerate(REAL if name == 'lm' else [1] * len(REAL)):
    np.testing.assert_allclose(got[row, real - 1:], expected[row, real - 1:], rtol=1e-4, atol=1e-4)
  return expected


PARTS = 12                           # models of all routers: compiling grows faster than the model
ROUTERS = [name for name in lookup.available('router') if name not in CHANNELS]


def undecodable(block):
  """Why a decoder with `block` cannot be computed token by token, or None; computes nothing."""
  return nnx.eval_shape(lambda: build('lm', block)).decoder.undecodable()


@functools.cache
def reason(router):
  """Why a decoder with a router cannot be computed token by token, or None."""
  return undecodable(sparse(router))


@pytest.mark.slow
def test_refusals_are_looked_at():
  reasons = {name: reason(name) for name in ROUTERS}
  reasons = {name: text for name, text in reasons.items() if text is not None}
  assert set(reasons) == {'expert_choice', 'expert_selection', 'graph_of_tokens', 'promoe_expert_choice',
                          'sequence_selection', 'soft_moe', 'union_of_experts'}
  assert all(f'router {name} cannot' in text and 'nearest' in text for name, text in reasons.items())


@pytest.mark.parametrize('part', [
    pytest.param(part, marks=[pytest.mark.slow] * (part > 0)) for part in range(PARTS)])
@pytest.mark.parametrize('name', ['lm', pytest.param('t5', marks=pytest.mark.slow)])
def test_every_router_decodes_as_it_evaluates(name, part):
  """All that are not refused, two layers each, a part of them in one model."""
  routers = [router for router in ROUTERS[part::PARTS] if reason(router) is None]
  every = {chr(ord('Ā') + i): sparse(router) | ALONE for i, router in enumerate(routers)}
  assert_cached_equals_whole(name, build(name, None, more=every))


SWITCH = sparse('switch')
INNER = {key: value for key, value in sparse('smoe').items() if key != 'layer'} | dict(name='moe')
LAYERS = dict(m=dict(layer='momentum', inner=INNER), a=dict(layer='adam_momentum', inner=INNER),
              r=dict(layer='robust_momentum', inner=INNER), s=dict(layer='shared', d_ff=8, inner=INNER),
              g=dict(layer='scaled', inner=INNER), i=sparse('compete_smoe') | dict(layer='compete_smoe'),
              l=dict(sparse('smoe'), layer='latent_moe', latent=4),
              k=dict(layer='avg_k', d_ff=4, num_blocks=6, k=2),
              n=DENSE | dict(around=dict(name='mixture_of_depths')),
              o=sparse('smoe') | dict(around=dict(name='mixture_of_depths', select='router', gate='sigmoid')),
              w=dict(layer='mixed_weights', d_ff=8, widths=(4, 8)),
              u=dict(layer='shuffled', inner=INNER), e=dict(layer='residual', inner=INNER),
              c=dict(layer='chain_of_experts', norm=False, inner=INNER),
              h=dict(layer='multihash', router=dict(name='hash', num_experts=3, vocab_size=VOCAB),
                     experts=dict(name='linear', d_ff=8)),
              v=sparse('moe_plus_plus') | dict(layer='moe_plus_plus'),
              p=sparse('hash', kind='position'), t=sparse('thor', eval_dispatch='time_step'),
              b=sparse('thor', eval_dispatch='token'),
              f=sparse('thor', eval_dispatch='1'),
              y=sparse('sigma_moe') | dict(layer='moeut', tied=True, attention=dict(
                  name='moeut', nope_dim=2, executor='einsum',
                  router=dict(name='sigma_moe', num_experts=2, k=1))))


@pytest.mark.parametrize('part', [
    pytest.param(part, marks=[pytest.mark.slow] * (part > 0)) for part in range(PARTS)])
def test_layers_around_and_beside_routers(part):
  """And the fields with which a router of neighbours decodes after all."""
  blocks = {letter: block if {'around', 'attention'} & set(block) else block | ALONE
            for letter, block in list(LAYERS.items())[part::PARTS]}
  assert_cached_equals_whole('lm', build('lm', None, more=blocks))


HASHES = {c: sparse('hash', kind=kind) | ALONE for c, kind in dict(p='previous', q='bigram').items()}


@pytest.mark.parametrize('name', ['lm', pytest.param('t5', marks=pytest.mark.slow)])
def test_hashes_of_the_token_before(name):
  assert_cached_equals_whole(name, build(name, None, more=HASHES))


def test_rows_that_change_places_take_along_what_they_remember():
  """As the beams of a search do."""
  model, given, order = build('lm', None, more=HASHES), batch('lm'), jnp.array([2, 0, 0])
  ids, real = given['decoder_input_tokens'], jnp.ones(len(REAL), bool)
  mask = jnp.arange(4) < jnp.asarray(REAL)[:, None]
  _, cache = model.begin({key: a[:, :4] * mask for key, a in given.items()}, 1)
  expected, _ = model.step(ids[jnp.arange(3), REAL], real, cache)
  for moved in (cache.reorder(order), cache.take(order)):
    got, _ = model.step(ids[jnp.arange(3), REAL][order], real, moved)
    np.testing.assert_allclose(got, expected[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name, fields', [
    pytest.param('lm', dict(num_kv_heads=2, scan_layers=False, tie_embeddings=False), marks=pytest.mark.slow),
    pytest.param('lm', dict(window=3, attention=dict(name='attention', qkv_bias=True, qk_norm=1e-5, clip=0.7),
                scale_head=False), marks=pytest.mark.slow),
    pytest.param('lm', dict(
        attention=dict(name='attention', use_bias=True, interleaved=True, scale=0.3), norm='layer',
        head_bias=True, embed_factor=2.0, residual_factor=0.5, logits_divisor=3.0,
        rotary_scaling=dict(name='longrope', short=(1.0, 1.0), long=(1.5, 4.0), length=5)),
                 marks=pytest.mark.slow),
    ('lm', dict(attention=dict(name='latent_attention', nope_dim=3, value_dim=5, kv_rank=6, q_rank=7),
                window=2)),
    pytest.param('lm', dict(num_kv_heads=1, attention=dict(name='attention', nope_dim=3, qk_norm=1e-5,
                                                           qk_norm_over='head')), marks=pytest.mark.slow),
    pytest.param('lm', dict(attention=dict(name='switch_head', nope_dim=3, executor='einsum', router=dict(
        name='sigma_moe', num_experts=3, k=2))), marks=pytest.mark.slow),
    pytest.param('t5', dict(num_buckets=4, max_distance=5, scan_layers=False, tie_embeddings=True),
                 marks=pytest.mark.slow)],
    ids=['lm', 'window', 'multipliers', 'latent', 'part', 'switch_head', 't5'])
def test_kinds_of_attention_loops_and_heads(name, fields):
  assert_cached_equals_whole(name, build(name, SWITCH, **fields))


@pytest.mark.parametrize('name, impl', [
    ('lm', None), pytest.param('lm', 'unsafe_rbg', marks=pytest.mark.slow),
    pytest.param('t5', None, marks=pytest.mark.slow)])
def test_what_is_drawn_for_a_text_is_kept_while_it_is_written(name, impl):
  """With a key of any kind, for each of THOR's dispatches."""
  every = {mode[0]: sparse('thor', eval_dispatch=mode) | ALONE for mode in ('token', 'sentence', 'batch')}
  model = build(name, None, more=every | dict(p=sparse('thor', eval_dispatch='time_step') | ALONE))
  drawn = assert_cached_equals_whole(name, model, key=jax.random.key(1, impl=impl))
  assert np.abs(drawn - whole(model, batch(name))).max() > 1e-2     # so that the draws matter


def test_beams_share_the_draw_of_their_text():
  """Whatever their order: rows of a search go on as the rows they came from."""
  model, given = build('lm', None, more=dict(s=sparse('thor') | ALONE)), batch('lm')
  prompt = {key: a[:, :2] for key, a in given.items()}
  @jax.jit
  def next_logits(model, prompt, ids, rows):
    _, cache = model.begin(prompt, 2, jax.random.key(2))
    return model.step(ids, jnp.ones(len(ids), bool), cache.take(rows))[0]
  rows, ids = jnp.array([2, 0, 0, 1, 2, 1]), jnp.arange(1, 7)
  got = next_logits(model, prompt, ids, rows)
  for beam, (row, id_) in enumerate(zip(rows, ids)):
    own = {key: a[:, :3] for key, a in given.items()}
    own['decoder_input_tokens'] = own['decoder_input_tokens'].at[row, 2].set(id_)
    wanted = whole(model, own, jax.random.key(2))[row, 2]
    np.testing.assert_allclose(got[beam], wanted, rtol=1e-4, atol=1e-4)


def test_windows_of_blocks():
  blocks = dict(a=DENSE | dict(window=2), c=DENSE | dict(window=3, around=dict(name='mixture_of_depths')))
  attention = dict(name='attention', sinks=True)
  assert_cached_equals_whole('lm', build('lm', None, more=blocks, attention=attention))


def test_prompts_whose_tokens_see_each_other():
  model, given = build('lm', SWITCH), batch('lm')
  prefix = jnp.asarray((np.arange(LENGTH) < REAL[:, None]) * 1)
  seen = assert_cached_equals_whole('lm', model, given | dict(decoder_causal_attention=prefix))
  assert np.abs(seen - whole(model, given)).max() > 1e-2            # so that the prefix matters


@pytest.mark.slow
def test_a_row_is_the_same_whatever_is_beside_it():
  model, given = build('lm', SWITCH), batch('lm')
  alone = jax.tree.map(lambda a: a[:1, :4], given)
  alone, _ = model.begin(alone, 1)
  beside, _ = model.begin(jax.tree.map(lambda a: a[:, :4], given), 1)
  np.testing.assert_allclose(alone[0], beside[0], rtol=1e-5, atol=1e-5)


def test_tokens_that_are_not_alone_are_dropped():
  """Without alone=True the layer of these tests drops tokens: what else would equality show?"""
  model, given = build('lm', SWITCH), batch('lm')
  logits, aux = jax.jit(lambda model, batch: model(batch))(model, given)
  assert aux['decoder_01'].metrics['drop_frac'] > 0.2
  assert np.abs(logits - whole(model, given)).max() > 1e-2


@pytest.mark.parametrize('router, fields, says', [
    ('hash', dict(kind='future'), "kind='future'"),
    ('st_moe', dict(batch_priority=True), 'batch_priority'),
    ('vmoe', dict(batch_priority=True), 'batch_priority')])
def test_fields_that_need_neighbours_are_refused(router, fields, says):
  assert says in undecodable(sparse(router, **fields))


@pytest.mark.slow
def test_an_encoder_may_need_neighbours():
  model = lookup.recipe('model', dict(SHAPES, name='t5', encoder=(('b', 1),), decoder=(('d', 1),)))(
      blocks=dict(d=DENSE, b=sparse('expert_choice')), rngs=nnx.Rngs(0))
  assert model.decoder.undecodable() is None and 'expert_choice' in model.encoder.undecodable()
  assert_cached_equals_whole('t5', model)


@pytest.mark.slow
def test_sinusoidal_positions_and_layer_norms_with_biases():
  """An encoder-decoder of NLLB's form: positions go on where the cached ones end."""
  router = dict(name='gshard', num_experts=3, second_policy='all', token_share=(None, 0.4))
  moe = dict(layer='moe', router=router, whole_batch=True, output_masking=0.2, executor='blocks',
             experts=EXPERTS | dict(use_bias=True))
  model = build('t5', moe, first_position=2, embed_factor=8 ** 0.5, use_bias=True, scaled=True, norm='layer')
  assert model.encoder_bias is None and model.decoder_bias is None
  seen = assert_cached_equals_whole('t5', model)
  late = {key: a + 3 * key.endswith('positions') for key, a in batch('t5').items()}
  assert np.abs(whole(model, late) - seen).max() > 1e-2
