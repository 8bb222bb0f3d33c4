"""The language model and T5: shapes, causality, packing, precision, gradients, sizes."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from stmoe import lookup
from stmoe.errors import UserError

# Top-2 with drops is not causal: a later token's first choice goes before an earlier one's second.
DROPLESS = dict(name='gshard', num_experts=3, capacity_factor=(None, None))
BLOCKS = tiny.BLOCKS | dict(g=tiny.SPARSE | dict(router=DROPLESS))
CAUSAL = dict(lm=dict(tiny.MODELS['lm'], layers=(('dsg', 2),)),
              t5=dict(tiny.MODELS['t5'], decoder=(('dsg', 2),)))


def build(name, **fields):
  return lookup.recipe('model', CAUSAL[name] | fields)(blocks=BLOCKS, rngs=nnx.Rngs(0))


@jax.jit
def forward(model, batch):
  return model(batch)


@pytest.mark.parametrize('name', ['lm', 't5'])
def test_shapes_names_and_causality(name):
  model = build(name)
  batch = tiny.batch(name, 2, 8)
  logits, aux = forward(model, batch)
  assert logits.shape == (2, 8, tiny.VOCAB) and logits.dtype == jnp.float32
  decoder = [f'decoder_{i:02d}' for i in (1, 2, 4, 5)]
  # Under jit a dict comes back sorted by name, which within a stack is layer order.
  assert list(aux) == decoder + ([f'encoder_{i:02d}' for i in range(4)] if name == 't5' else [])
  assert all(a.load.shape == (3,) for a in aux.values())
  changed = batch | dict(decoder_input_tokens=batch['decoder_input_tokens'].at[:, 5].add(1) % tiny.VOCAB)
  other, _ = forward(model, changed)
  np.testing.assert_array_equal(other[:, :5], logits[:, :5])
  assert (np.abs(other[:, 5:] - logits[:, 5:]).max(axis=(0, 2)) > 0).all()


def test_prefix_sees_itself_in_both_directions_and_nothing_after():
  model = build('lm', layers=(('d', 2),))
  batch = tiny.batch('lm', 1, 6) | dict(decoder_causal_attention=jnp.array([[1, 1, 1, 0, 0, 0]]))
  logits, _ = forward(model, batch)
  change = lambda t: forward(model, batch | dict(
      decoder_input_tokens=batch['decoder_input_tokens'].at[0, t].add(1) % tiny.VOCAB))[0]
  assert (jnp.abs(change(2) - logits)[0, :3].max(axis=-1) > 0).all()
  np.testing.assert_array_equal(change(3)[0, :3], logits[0, :3])


@pytest.mark.parametrize('scan_layers', [True, False])
def test_windows_are_of_blocks(scan_layers):
  """Through windows of 2, 3 and 2, the model's, a token is seen up to 1 + 2 + 1 places later."""
  window = lambda **window: dict(layer='dense', d_ff=4) | window
  fields = tiny.MODELS['lm'] | dict(layers=(('abc', 1),), window=2, scan_layers=scan_layers)
  model = lookup.recipe('model', fields)(
      blocks=dict(a=window(window=2), b=window(window=3), c=window()), rngs=nnx.Rngs(0))
  batch = tiny.batch('lm', 1, 12)
  batch |= dict(decoder_segment_ids=batch['decoder_segment_ids'].at[:, 10:].add(1))       # packed
  other = batch | dict(decoder_input_tokens=batch['decoder_input_tokens'].at[0, [1, 9]].add(1) % tiny.VOCAB)
  changed = jnp.any(forward(model, batch)[0] != forward(model, other)[0], axis=-1)[0]
  assert jnp.flatnonzero(changed).tolist() == [1, 2, 3, 4, 5, 9]


@pytest.mark.parametrize('name, block', [('t5', dict(window=2)), ('lm', dict(window=2, attention=False))])
def test_windows_where_there_are_none(name, block):
  blocks = BLOCKS | dict(d=dict(layer='dense', d_ff=4) | block)
  with pytest.raises(UserError, match=r'blocks\.d\.window=2: .*nearest: no blocks\.d\.window'):
    nnx.eval_shape(lambda: lookup.recipe('model', CAUSAL[name])(blocks=blocks, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize('name', ['lm', 't5'])
def test_packed_sequences_do_not_see_each_other(name):
  model = build(name)
  batch = tiny.batch(name, 1, 8)
  second = jnp.arange(8)[None] >= tiny.SIZE
  batch |= {key: a + second for key, a in batch.items() if key.endswith('segment_ids')}
  logits, _ = forward(model, batch)
  keys = [key for key in batch if key.endswith('input_tokens')]
  other, _ = forward(model, batch | {key: batch[key].at[0, :tiny.SIZE].add(1) % tiny.VOCAB for key in keys})
  np.testing.assert_array_equal(other[0, tiny.SIZE:], logits[0, tiny.SIZE:])
  assert (other[0, :tiny.SIZE] != logits[0, :tiny.SIZE]).any()


def test_bfloat16_activations_keep_float32_parameters_and_logits():
  model, exact = build('lm', dtype='bfloat16'), build('lm')
  batch = tiny.batch('lm', 2, 8)
  logits, aux = forward(model, batch)
  assert logits.dtype == jnp.float32
  assert {a.dtype for a in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype('float32')}
  assert all(a.losses['z'].dtype == jnp.float32 for a in aux.values())
  np.testing.assert_allclose(logits, forward(exact, batch)[0], atol=0.1)


def test_gradients_reach_every_parameter():
  made = tiny.build('t5')
  _, grads = tiny.run('t5', made, tiny.batch('t5', 4, 8))
  dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(grads) if not jnp.any(g)]
  assert not dead


def test_multipliers_are_factors_of_weights():
  """x + r f(norm(x)), where f ends in a matrix: r times that matrix, and so on."""
  fields = dict(layers=(('d', 2),), tie_embeddings=False)
  model = build('lm', embed_factor=3.0, residual_factor=0.3, logits_divisor=4.0, **fields)
  plain, batch = build('lm', **fields), tiny.batch('lm', 2, 8)
  plain.embed.table[...] *= 3.0
  plain.head.w[...] /= 4.0
  block = plain.decoder.segments[0].blocks[0]
  block.attention.wo[...] *= 0.3
  block.layer.wo[...] *= 0.3
  np.testing.assert_allclose(forward(model, batch)[0], forward(plain, batch)[0], rtol=1e-4, atol=1e-5)
  logits, _ = model.begin(batch, 2)                                  # in decoding, too
  np.testing.assert_allclose(logits, forward(model, batch)[0][:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('tied', [True, False])
def test_a_biased_head_adds_its_bias(tied):
  model, batch = build('lm', layers=(('d', 1),), head_bias=True, tie_embeddings=tied), tiny.batch('lm', 1, 4)
  before, bias = forward(model, batch)[0], jnp.arange(float(tiny.VOCAB))
  (model.head_bias if tied else model.head.b)[...] = bias
  np.testing.assert_allclose(forward(model, batch)[0], before + bias, rtol=1e-5, atol=1e-5)


def test_norms_with_mean_and_bias():
  """The embedding of a token times a positive number, plus another: a layer norm sees no difference."""
  model, batch = build('lm', layers=(('d', 1),), norm='layer', norm_epsilon=1e-9), tiny.batch('lm', 1, 4)
  params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
  block = params['decoder']['segments'][0]['blocks'][0]
  assert all({*norm} == {'scale', 'bias'} for norm in (
      block['attention_norm'], block['layer_norm'], params['decoder']['norm']))
  x = model.embed(batch['decoder_input_tokens'])
  norm = jax.tree.map(lambda a: a[0], model.decoder.segments[0].blocks[0].attention_norm)
  np.testing.assert_allclose(norm(3 * x + 2), norm(x), atol=1e-4)


def test_t5_small_has_its_published_size():
  """google/t5-v1_1-small: D 512, F 1024, 6 heads of 64, 8 layers each side; about 77M parameters."""
  blocks = dict(d=dict(layer='dense', d_ff=1024, activation='gelu', gated=True))
  fields = dict(name='t5', vocab_size=32128, d_model=512, num_heads=6, head_dim=64,
                encoder=(('d', 8),), decoder=(('d', 8),))
  abstract = nnx.eval_shape(lambda: lookup.recipe('model', fields)(blocks=blocks, rngs=nnx.Rngs(0)))
  sizes = [int(np.prod(a.shape)) for a in jax.tree.leaves(nnx.state(abstract, nnx.Param))]
  assert sum(sizes) == 76_961_152


def test_odd_heads_are_refused():
  with pytest.raises(UserError, match='head_dim 5 is odd'):
    build('lm', head_dim=5)


@pytest.mark.parametrize('fields, said', [
    (dict(num_buckets=8, max_distance=4), 'model.max_distance=4: half of model.num_buckets=8'),
    (dict(num_buckets=8, max_distance=1), 'nearest: 5')])
def test_t5_has_distances_beyond_the_exact_ones(fields, said):
  """Else its buckets divide by a logarithm of 1 or less."""
  with pytest.raises(UserError, match=said):
    nnx.eval_shape(lambda: build('t5', **fields))


def test_a_scaling_of_another_width_is_refused_before_anything_is_computed():
  scaling = dict(name='longrope', short=(1.0,), long=(1.0,), length=4)
  with pytest.raises(UserError, match='1 factors for 2 pairs; nearest: 2 of each'):
    nnx.eval_shape(lambda: build('lm', rotary_scaling=scaling))


def test_no_array_is_kept_twice_for_the_backward():
  """The default policy keeps little more than half of what the derivatives of all operations read."""
  def residuals(remat):
    graphdef, params, routers = tiny.build('lm', layers=(('d', 3),), remat=remat)
    rows = tiny.batch('lm', 2, 2 * tiny.SIZE)
    logits = lambda params: nnx.merge(graphdef, params, routers)(rows, train=True)[0]
    held = jax.eval_shape(lambda params: jax.vjp(logits, params)[1], params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held))
  assert residuals('elementwise') < 0.7 * residuals('none')
