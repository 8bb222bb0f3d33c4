"""The Vision Transformer: patches and tokens, what a row depends on, invariance, counts, a real training."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from scipy import ndimage

from stmoe import errors
from stmoe import lookup
from stmoe import router_state as state
from stmoe.analysis import flops
from stmoe.configs import common
from stmoe.parts.pictures import patches
from stmoe.parts.pictures import positions
from stmoe.surgery import layout
from stmoe.targets import ids
from stmoe.train import router_losses as losses

SPARSE = dict(layer='moe', executor='einsum', group_size=10)
BANK = dict(name='mlp', d_ff=8, activation='gelu', init_scale=1.0, use_bias=True)
BLOCKS = dict(
    d=dict(layer='dense', d_ff=12, activation='gelu', use_bias=True),
    v=SPARSE | dict(router=dict(name='vmoe', num_experts=3, multiple_of=1, batch_priority=True),
                    experts=BANK | dict(identical=True)),
    s=SPARSE | dict(group_size=None, router=dict(name='soft_moe', num_experts=3, slots=2), experts=BANK))
# 4 patches of 2 x 2 pixels and the class token: 5 tokens, two images to a group of 10.
FIELDS = dict(name='vit', vocab_size=7, d_model=8, num_heads=2, head_dim=4, image_size=4, patch_size=2,
              channels=3, layers=(('dv', 2), ('s', 1)), head_bias=-1.0, representation=6)
WEIGHTED = dict(importance=(0.1, 'mean'), load=(0.1, 'mean'), gshard=(0.01, 'sum'))
KEY = jax.random.key(7, impl='unsafe_rbg')                           # compiles several times faster


@functools.cache
def build(**fields):
  """(graphdef, params) of a model whose head and routers decide something."""
  model = lookup.recipe('model', FIELDS | fields)(blocks=BLOCKS, rngs=nnx.Rngs(0))
  graphdef, params, _ = nnx.split(model, nnx.Param, state.RouterState)
  params = jax.tree.map(lambda a: 30 * a if a.shape[-1] == 3 else a, nnx.to_pure_dict(params))
  params['head']['w'] = jax.random.normal(jax.random.key(1), params['head']['w'].shape)
  return graphdef, params


def batch(rows=8, seed=0):
  rng = np.random.default_rng(seed)
  return dict(image=jnp.asarray(rng.normal(size=(rows, 4, 4, 3)), jnp.float32),
              labels=jnp.asarray(rng.integers(0, 7, (rows, 1)), jnp.int32),
              weights=jnp.ones((rows, 1), jnp.int32))


@functools.partial(jax.jit, static_argnums=0, static_argnames='train')
def forward(graphdef, params, batch, key=None, train=False):
  return nnx.merge(graphdef, params)(batch, key=key, train=train)


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(graphdef, params, batch, key, tokens, count):
  def loss(params):
    logits, aux = nnx.merge(graphdef, params)(batch, key=key, train=True, tokens=tokens)
    return ids.task(logits, batch)['ce'] / count + losses.router(aux, WEIGHTED)[0]
  return jax.value_and_grad(loss)(params)


def run(made, batch, key=None, parts=1):
  """Loss and gradients in `parts` microbatches, averaged."""
  count = batch['weights'].sum() / parts
  tokens = dict(encoder=5 * count)
  cut = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
  pieces = [{k: a[i] for k, a in cut.items()} for i in range(parts)]
  results = [value_and_grad(*made, piece, key, tokens, count) for piece in pieces]
  return jax.tree.map(lambda *leaves: sum(leaves) / parts, *results)


def assert_equal(actual, expected):
  scale = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(expected))
  flat, wanted = (jax.tree.leaves_with_path(r) for r in (actual, expected))
  assert [p for p, _ in flat] == [p for p, _ in wanted]
  for (path, a), (_, b) in zip(flat, wanted):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-6 * max(scale, 1), err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope='module')
def plain():
  return run(build(), batch(), KEY)


def test_patches_are_read_in_order():
  layer = patches.Patches(5, image_size=6, patch_size=2, channels=3, rngs=nnx.Rngs(0))
  image = np.random.default_rng(0).normal(size=(1, 6, 6, 3)).astype(np.float32)
  y = layer(jnp.asarray(image))
  assert y.shape == (1, 9, 5)
  for n in range(9):                                                 # patch n is row n // 3, column n % 3
    i, j = 2 * (n // 3), 2 * (n % 3)
    np.testing.assert_allclose(y[0, n], image[0, i:i + 2, j:j + 2].reshape(-1) @ layer.w[...], atol=1e-5)


def test_shapes_names_and_first_values():
  model = lookup.recipe('model', FIELDS)(blocks=BLOCKS, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(model)
  logits, aux = forward(graphdef, params, batch())
  assert logits.shape == (8, 1, 7) and logits.dtype == jnp.float32
  assert sorted(aux) == ['encoder_01', 'encoder_03', 'encoder_04']
  np.testing.assert_array_equal(logits, -1.0)                        # zero matrix, constant bias
  assert not jnp.any(model.token[...]) and 0.01 < model.positions[...].std() < 0.03
  bank = model.encoder.segments[0].blocks[1].layer.experts
  np.testing.assert_array_equal(bank.wi[0, 0], bank.wi[0, 1])        # identical experts in a layer,
  assert jnp.abs(bank.wi[0, 0] - bank.wi[1, 0]).max() > 0.01         # not in two of them
  assert jnp.abs(model.encoder.segments[1].blocks[0].layer.experts.wi[0, 0]).max() > 0.01
  assert model.count_tokens(batch()) == dict(encoder=40)


def test_places_count_and_every_patch_is_seen():
  made, whole = build(), batch(2)
  logits = forward(*made, whole)[0]
  turned = forward(*made, whole | dict(image=whole['image'][:, ::-1]))[0]
  assert jnp.abs(turned - logits).max() > 1e-3                       # the same patches elsewhere
  for y, x in [(0, 0), (0, 3), (3, 0), (3, 3)]:
    other = forward(*made, whole | dict(image=whole['image'].at[:, y, x, 1].add(2.0)))[0]
    assert (jnp.abs(other - logits).max(axis=(1, 2)) > 1e-4).all()


def test_empty_rows_change_nothing():
  made, whole = build(), batch(4)
  padded = jax.tree.map(lambda a: jnp.pad(a, ((0, 4),) + ((0, 0),) * (a.ndim - 1), constant_values=0), whole)
  padded['image'] = padded['image'].at[4:].set(1e3)
  logits, aux = forward(*made, padded)
  expected, before = forward(*made, whole)
  np.testing.assert_allclose(logits[:4], expected, atol=1e-5)
  for name, report in before.items():
    np.testing.assert_allclose(aux[name].load, report.load, rtol=1e-5)
    for loss, value in report.losses.items():
      np.testing.assert_allclose(aux[name].losses[loss], value, rtol=1e-4, atol=1e-6)


def test_pooling_of_the_mean_has_no_class_token():
  graphdef, params = build(pooling='mean', layers=(('d', 1),), representation=0)
  assert 'token' not in params and params['positions'].shape == (1, 4, 8)
  model = nnx.merge(graphdef, params)
  x = model.patches(batch()['image']) + params['positions']
  # Attention and feed-forward silenced: what is left is the norm, the mean and the head.
  for path in ('attention.wo', 'layer.wo'):
    part, name = path.split('.')
    params['encoder']['segments'][0]['blocks'][0][part][name] *= 0
  rows = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
  expected = rows.mean(axis=1) @ params['head']['w'] - 1
  np.testing.assert_allclose(forward(graphdef, params, batch())[0][:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_scan_and_loop_are_equal_and_draw_the_same_noise(plain):
  graphdef, _ = build(scan_layers=False)
  loss, grads = run((graphdef, layout.unroll(build()[1])), batch(), KEY)
  assert_equal((loss, layout.roll(grads)), plain)
  assert abs(float(plain[0] - run(build(), batch(), jax.random.key(8, impl='unsafe_rbg'))[0])) > 1e-4


@pytest.mark.slow
def test_microbatches():
  """Without noise, which every microbatch draws anew; one of them has an empty row."""
  whole = batch()
  whole['weights'] = whole['weights'].at[5].set(0)
  assert_equal(run(build(), whole, parts=2), run(build(), whole))


@pytest.mark.slow
def test_gradients_reach_every_parameter(plain):
  dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(plain[1]) if not jnp.any(g)]
  assert all('bk' in path for path in dead)      # a shift of all keys cancels in the softmax


def test_bfloat16_activations_keep_float32_logits_and_losses():
  graphdef, _ = build(dtype='bfloat16', layers=(('dv', 1),))
  params = build(layers=(('dv', 1),))[1]
  logits, aux = forward(graphdef, params, batch())
  assert logits.dtype == jnp.float32 and aux['encoder_01'].losses['importance'].dtype == jnp.float32
  np.testing.assert_allclose(logits, forward(build(layers=(('dv', 1),))[0], params, batch())[0], atol=0.15)


@pytest.mark.parametrize('fields, said', [
    (dict(patch_size=3), 'patch_size 3 does not divide image_size 4; nearest: 1, 2, 4'),
    (dict(pooling='tokn'), "model.pooling has no choice 'tokn'; nearest: token"),
    (dict(image_size=6), 'images of 4 x 4 x 3 for a model of 6 x 6 x 3; set data.image_size=6')])
def test_mistakes_are_one_line(fields, said):
  with pytest.raises(errors.UserError, match=said):
    model = lookup.recipe('model', FIELDS | fields)(blocks=BLOCKS, rngs=nnx.Rngs(0))
    jax.eval_shape(lambda b: model(b)[0], batch())


def test_a_batch_without_images_is_a_line():
  with pytest.raises(errors.UserError, match='there are no images in the batch; wanted: at least one'):
    patches.check(jnp.zeros((0, 4, 4, 3)), (4, 4, 3))


def test_flops_and_parameters_by_hand():
  tokens, width, experts = 17, 8, 4
  cfg = ml_collections.ConfigDict(dict(
      model=FIELDS | dict(image_size=8, layers=(('dv', 1),), representation=0),
      blocks=dict(d=BLOCKS['d'], v=dict(BLOCKS['v'], group_size=None)),
      data=common.images('digits', 8), loss=dict(passes=1)))
  cfg.blocks.v.router.num_experts = experts
  assert flops.lengths(cfg) == dict(encoder=tokens, decoder=1)
  attention = 4 * width * width + 2 * tokens * width                 # products, scores and values, per token
  per_token = 2 * attention + 2 * 8 * 12 + width * experts + 2 * 2 * 8 * 8          # two experts of width 8
  by_hand = 2 * (tokens * per_token + 16 * 12 * width + width * 7)
  assert flops.active_per_token(cfg)['forward_per_row'] == flops.active_per_token(cfg)['forward'] == by_hand
  blocks = 2 * (4 * width * width + 4 * width + 4 * width)           # attention with biases, two norms
  dense, bank = 2 * 8 * 12 + 12 + 8, experts * (2 * 8 * 8 + 8 + 8) + width * experts
  ends = 12 * width + width + width + tokens * width + 2 * width + width * 7 + 7
  assert flops.parameters(cfg)['total'] == blocks + dense + bank + ends


@pytest.mark.parametrize('before, after, leading', [(3, 5, 1), (7, 12, 0), (5, 3, 1), (4, 4, 0), (1, 2, 1)])
def test_positions_are_resized_as_scipy_zooms(before, after, leading):
  table = np.random.default_rng(0).normal(size=(1, leading + before**2, 4)).astype(np.float32)
  found = positions.resized(jnp.asarray(table), leading + after**2, leading)
  grid = table[0, leading:].reshape(before, before, 4)
  zoomed = ndimage.zoom(grid, (after / before, after / before, 1), order=1).reshape(1, after**2, 4)
  np.testing.assert_allclose(found, np.concatenate([table[:, :leading], zoomed], axis=1), atol=1e-6)


def test_positions_that_are_no_square_are_not_resized():
  table = jnp.zeros((1, 17, 4))                                      # 16 patches and a class token
  assert positions.resized(table, 25, 0) is None and positions.resized(table, 27, 1) is None
  assert positions.resized(table, 26, 1).shape == (1, 26, 4)
