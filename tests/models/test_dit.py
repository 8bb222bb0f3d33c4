"""The Diffusion Transformer: what it starts as, what a row depends on, parts of a batch, counts, mistakes."""

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe import sections
from stmoe.analysis import flops
from stmoe.configs import common
from stmoe.configs.promoe import blocks as promoe_blocks
from stmoe.configs.switch_dit import blocks as switch_blocks
from stmoe.surgery import layout
from stmoe.targets import ddpm
from stmoe.train import check
from stmoe.train import router_losses as losses
from tests.models import tiny

WIDTH = 8
PLAIN = dict(layer='dense', d_ff=12, activation='gelu', use_bias=True)


def einsum(block):
  """`block` with the executor that compiles fastest."""
  return {key: 'einsum' if key == 'executor' else einsum(value) if isinstance(value, dict) else value
          for key, value in block.items()}


SWITCH = PLAIN | dict(around=einsum(switch_blocks.switch(WIDTH)['around']))
BLOCKS = dict(d=PLAIN, s=SWITCH, r=PLAIN | dict(around=dict(name='denoising_task_routing', share=0.5)),
              p=einsum(promoe_blocks.sparse('promoe', 6, 3, 8)),
              e=einsum(promoe_blocks.sparse('expert_choice', 6, 3, None)))
FIELDS = dict(name='dit', vocab_size=5, d_model=WIDTH, num_heads=2, head_dim=4, image_size=4, patch_size=2,
              channels=1, layers=(('srpe', 1),))
WEIGHTED = dict(diffusion_prior=(1.0, 'mean'), contrastive=(0.5, 'sum'))
TARGET = ddpm.Ddpm(steps=1000)


def build(**fields):
  """A model whose arrays are all drawn, so that everything decides something."""
  make = lambda: lookup.recipe('model', FIELDS | fields)(blocks=BLOCKS, rngs=nnx.Rngs(0))
  graph, shapes = nnx.split(nnx.eval_shape(make))
  rng = np.random.default_rng(0)
  scale = lambda path: 1.0 if {'router', 'time'} & {getattr(key, 'key', None) for key in path} else 0.3
  draw = lambda path, x: jnp.asarray(scale(path) * rng.normal(size=x.shape), jnp.float32)
  return nnx.merge(graph, jax.tree.map_with_path(draw, nnx.to_pure_dict(shapes)))


def batch(rows=8, seed=0):
  rng = np.random.default_rng(seed)
  image = lambda: jnp.asarray(rng.normal(size=(rows, 4, 4, 1)), jnp.float32)
  return dict(image=image(), noise=image(), weights=jnp.ones((rows, 1), jnp.int32)) | {
      'given/time': jnp.asarray(rng.random(rows), jnp.float32),
      'given/label': jnp.asarray(np.arange(rows) % 6 - 1, jnp.int32)}


def loss(model, batch, tokens, count):
  """(all losses, (outputs, losses of routers and blocks)) of a part of a batch."""
  outputs, aux = model(TARGET.posed(batch), train=True, tokens=tokens)
  of_routers, values = losses.router(aux, WEIGHTED)
  return TARGET.loss(outputs, batch, count)[0] + of_routers, (outputs, values)


run, run_with_gradients = jax.jit(loss), jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope='module')
def model():
  return build()


def counted(data, parts=1):
  """The divisors of a batch in parts: tokens of the stack and images."""
  images = data['weights'].sum() / parts
  return dict(encoder=4 * images), images


@pytest.mark.slow
def test_it_starts_as_nothing_and_switch_dit_as_dit():
  made = lookup.recipe('model', FIELDS | dict(layers=(('s', 2),)))(blocks=BLOCKS, rngs=nnx.Rngs(0))
  plain = lookup.recipe('model', FIELDS | dict(layers=(('d', 2),)))(blocks=BLOCKS, rngs=nnx.Rngs(0))
  draw = lambda path, shape: jax.random.normal(jax.random.key(len(''.join(map(str, path)))), shape)
  values = {}
  for path, value in nnx.to_flat_state(nnx.state(plain, nnx.Param)):
    values[tuple(map(str, path))] = value[...] = draw(path, value.shape)
  for path, value in nnx.to_flat_state(nnx.state(made, nnx.Param)):
    own = [str(key) for key in path]
    if 'router' not in own and 'experts' not in own:                 # SwitchDit's block is an AdaLnZero
      at = own.index('block') if 'block' in own else None
      value[...] = values[tuple(own if at is None else own[:at] + own[at + 1:])]
  data = TARGET.posed(batch())
  expected, _ = jax.jit(plain)(data)
  assert jnp.abs(expected).max() > 1
  np.testing.assert_allclose(jax.jit(made)(data)[0], expected, rtol=1e-4, atol=1e-4)
  first = lookup.recipe('model', FIELDS)(blocks=BLOCKS, rngs=nnx.Rngs(0))
  assert not jnp.any(jax.jit(first)(data)[0])


def halved(data):
  """The two halves of a batch, of 8 rows each: the other half holds no image there."""
  for first in (True, False):
    yield data | dict(weights=data['weights'] * ((np.arange(8) < 4) == first)[:, None])


def test_parts_of_a_batch_add_up(model):
  """Losses of two microbatches; what a microbatch does not hold has weight 0 here, which changes nothing."""
  data = batch()
  data['weights'] = data['weights'].at[5].set(0)
  value, (outputs, values) = run(model, data, *counted(data))
  assert set(values) == {'diffusion_prior', 'contrastive', 'balance'} and values['diffusion_prior'] > 0.01
  parts = [run(model, half, *counted(data, 2)) for half in halved(data)]
  np.testing.assert_allclose(sum(part[0] for part in parts) / 2, value, rtol=1e-5)
  for name, whole in values.items():
    np.testing.assert_allclose(sum(part[1][1][name] for part in parts) / 2, whole, rtol=1e-5, err_msg=name)
  real = np.array([0, 1, 2, 3])
  np.testing.assert_allclose(parts[0][1][0][real], outputs[real], rtol=1e-4, atol=1e-4)


def test_a_row_depends_on_its_own_time_and_class(model):
  data = batch()
  outputs = run(model, data, *counted(data))[1][0]
  other = run(model, data | {'given/label': data['given/label'].at[2].set(-1),
                             'given/time': data['given/time'].at[4].set(0.9)}, *counted(data))[1][0]
  changed = np.asarray(jnp.abs(other - outputs).max(axis=(1, 2, 3)) > 1e-4)
  np.testing.assert_array_equal(changed, np.isin(np.arange(8), [2, 4]))


@pytest.mark.slow
def test_gradients_reach_every_parameter_and_add_up(model):
  data = batch()
  _, grads = run_with_gradients(model, data, *counted(data))
  dead = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(grads) if not jnp.any(g)]
  assert all('bk' in path for path in dead), dead                    # a shift of all keys cancels
  parts = [run_with_gradients(model, half, *counted(data, 2))[1] for half in halved(data)]
  for whole, *of_parts in zip(*map(jax.tree.leaves, (grads, *parts))):
    np.testing.assert_allclose(sum(of_parts) / 2, whole, rtol=1e-3, atol=2e-5 * jnp.abs(whole).max() + 1e-5)


def test_images_without_a_class_go_to_the_last_expert(model):
  data = batch() | {'given/label': jnp.full((8,), -1)}
  _, aux = jax.jit(model)(TARGET.posed(data))
  for name in ('encoder_02', 'encoder_03'):
    assert aux[name].load[:3].sum() == 0 and aux[name].load[3] == 32
  chosen = aux['encoder_00.modulation'].load
  assert chosen.sum() == 2 * 32 and chosen.max() <= 32
  assert not any(one.records for one in aux.values())


@pytest.mark.slow
def test_scan_and_loop_and_devices_are_equal():
  data, layers = batch(), (('srp', 2), ('e', 1))
  scanned = build(layers=layers)
  value, (outputs, values) = run(scanned, data, *counted(data))
  params = layout.unroll(nnx.to_pure_dict(nnx.state(scanned, nnx.Param)))
  graph = nnx.graphdef(build(layers=layers, scan_layers=False))
  looped = run(nnx.merge(graph, params), data, *counted(data))
  mesh = axes.make_mesh(data=4, devices=jax.devices()[:4])           # two images, a group of routing, on each
  with axes.use(mesh, axes.rules('')):
    split = jax.jit(loss)(scanned, check.place(jax.tree.map(np.asarray, data), mesh), *counted(data))
  for other in (looped, split):
    np.testing.assert_allclose(other[0], value, rtol=1e-5)
    np.testing.assert_allclose(other[1][0], outputs, rtol=0, atol=1e-4 * jnp.abs(outputs).max())
    for name, expected in values.items():
      np.testing.assert_allclose(other[1][1][name], expected, rtol=1e-5)


@pytest.mark.parametrize('fields, said', [
    (dict(d_model=6), 'model.d_model=6: rows and columns have sines and cosines; nearest: 4, 8'),
    (dict(image_size=6), 'images of 4 x 4 x 1 for a model of 6 x 6 x 1; set data.image_size=6'),
    (dict(layers=(('x', 1),)), 'a router that scores times')])
def test_mistakes_are_one_line(fields, said):
  layer = SWITCH['around']['layer'] | dict(router=dict(name='smoe', num_experts=3))
  odd = SWITCH['around'] | dict(layer=layer)
  with pytest.raises(errors.UserError, match=said):
    model = lookup.recipe('model', FIELDS | dict(layers=(('d', 1),)) | fields)(
        blocks=BLOCKS | dict(x=PLAIN | dict(around=odd)), rngs=nnx.Rngs(0))
    jax.eval_shape(lambda b: model(TARGET.posed(b))[0], batch())


def test_another_model_has_no_noise_levels():
  model = lookup.recipe('model', dict(tiny.SHAPES, name='lm', layers=(('r', 1),)))(
      blocks=BLOCKS, rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match="denoising_task_routing: nothing is given as 'time'"):
    jax.eval_shape(model, tiny.batch('lm', 1, 4))


def test_flops_by_hand():
  cfg = ml_collections.ConfigDict(dict(
      model=FIELDS | dict(layers=(('dsp', 1),)), blocks={name: BLOCKS[name] for name in 'dsp'},
      data=common.noise('digits', 4, channels=1), loss=dict(name='ddpm'),
      optimizer=dict(name='adamw'), losses={}, seed=0))
  sections.complete(cfg)
  assert flops.lengths(cfg) == dict(encoder=4, decoder=1)
  d, tokens = WIDTH, 4
  block = tokens * (4 * d * d + 2 * tokens * d) + 6 * d * d          # attention; one row of the condition
  feed_forward = tokens * (2 * d * 12 + 2 * d * 12 + 2 * d * 6 + 2 * d * 6)        # d, s, p: shared and one
  routers = tokens * (3 * d + 2 * d * d) + 3 * d * tokens            # times; two linear experts; prototypes
  ends = tokens * 4 * d + tokens * d * 8 + 2 * d * d + 256 * d + d * d
  found = flops.active_per_token(cfg)['forward_per_row']
  assert found == 2 * (3 * block + feed_forward + routers + ends)
