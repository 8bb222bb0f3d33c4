"""The residual network with a pathway for each image: one expert in all convolutions, common norms."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import experiment
from stmoe import lookup
from stmoe.analysis import flops
from stmoe.models import resnet

B = 4
FIELDS = dict(vocab_size=3, d_model=2, widths=(2, 3), depths=(1, 1), image_size=4, channels=1, router_width=2,
              router_depth=1, blocks={})


def make(executor='einsum', sparse=True, **fields):
  router = lookup.recipe('router', dict(name='adv_moe', num_experts=2)) if sparse else None
  return resnet.ResNet(**FIELDS | dict(executor=executor, router=router) | fields, rngs=nnx.Rngs(0))


def batch():
  return dict(image=jax.random.uniform(jax.random.key(0), (B, 4, 4, 1)), labels=jnp.zeros((B, 1), jnp.int32),
              weights=jnp.ones((B, 1), jnp.int32))


@functools.partial(jax.jit, static_argnames='train')
def run(model, batch, train=False):
  return model(batch, train=train)


def test_executors_agree_and_an_image_has_the_expert_of_its_largest_score():
  model = make()
  model.router.b[...] = jnp.array([0.0, 5.0])
  logits, aux = run(model, batch())
  assert logits.shape == (B, 1, 3) and aux[resnet.NAME].load.tolist() == [0, B]
  # The other expert's arrays are no part of the answer, in any convolution.
  other = make('blocks')
  other.router.b[...] = jnp.array([0.0, 5.0])
  for block in other.experts.blocks:
    for convolution in block.convs:
      convolution.experts.w[...] = convolution.experts.w[...].at[0].set(jnp.nan)
  np.testing.assert_allclose(run(other, batch())[0], logits, rtol=1e-5, atol=1e-6)


def test_convolutions_begin_as_in_the_released_code():
  """Those of experts N(0, 2 / (9 E F)), those of the router's network uniform up to 1 / sqrt(fan in)."""
  model = make(widths=(64, 64), router_width=32)
  experts = model.experts.blocks[1].convs[1].experts.w[...]          # [E, k, k, C, F]
  np.testing.assert_allclose(experts.std(), (2 / (9 * 2 * 64)) ** 0.5, rtol=0.03)
  for block in model.router_network.blocks:
    for convolution in block.convs:
      w = convolution.dense.w[...]                                   # [k, k, C, F]
      bound = (9 * w.shape[2]) ** -0.5
      assert 0.99 * bound < jnp.abs(w).max() <= bound
      np.testing.assert_allclose(w.std(), bound / 3 ** 0.5, rtol=0.03)


def test_norms_move_once_a_step_and_not_in_evaluation():
  model = make()
  _, aux = run(model, batch(), train=True)
  model.commit(run(model, batch())[1])
  assert not model.experts.stem_norm.mean[...].any()
  model.commit(aux)
  features = model.experts.stem(batch()['image'], None)
  np.testing.assert_allclose(model.experts.stem_norm.mean[...], 0.1 * features.mean((0, 1, 2)), rtol=1e-5)
  assert (model.router_network.stem_norm.variance[...] != 1).any()
  assert len(model.states()[resnet.NAME]) == len(aux[resnet.NAME].statistics)      # every norm reported


def test_rows_without_an_image_change_nothing():
  """In training norms see images alone: answers, losses and statistics are those of the images."""
  model, images = make(), batch()
  more = jax.tree.map(lambda x: jnp.concatenate([x, 0 * x[:2]]), images)
  (logits, aux), (padded, with_padding) = run(model, images, train=True), run(model, more, train=True)
  np.testing.assert_allclose(padded[:B], logits, rtol=1e-4, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
               with_padding[resnet.NAME].statistics, aux[resnet.NAME].statistics)


@pytest.mark.slow
@pytest.mark.parametrize('executor', ['gather', 'all_to_all'])
def test_a_mesh_changes_nothing(executor):
  """Norms see the images of all devices, which route their own; values, gradients and statistics."""
  images = dict(image=jax.random.uniform(jax.random.key(0), (8, 4, 4, 1)),
                weights=jnp.ones((8, 1), jnp.int32))

  def computed():
    def loss(model):
      logits, aux = model(images, train=True)
      return jnp.sum(jnp.sin(logits)), aux
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(make(executor))
  (one, aux), grads = computed()
  with axes.use(axes.make_mesh(data=4, expert=2)):
    (spread, other), apart = computed()
  np.testing.assert_allclose(one, spread, rtol=1e-5)
  assert (aux[resnet.NAME].load == other[resnet.NAME].load).all()
  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(same, (grads, aux[resnet.NAME].statistics), (apart, other[resnet.NAME].statistics))


def test_a_dense_network_has_no_router():
  model = make(sparse=False)
  assert run(model, batch())[1] == {} and model.scores(batch()) is None


def test_operations_are_those_of_one_expert():
  load = lambda arg: experiment.load(f'adv_moe/digits{arg}')[0]
  cost = lambda arg: flops.active_per_token(load(arg))
  sparse, dense = cost(''), cost(':method=dense')
  pixels = {8: 64, 4: 16, 2: 4}
  router = 9 * (64 * (8 + 2 * 64) + 16 * (8 * 16 + 16 * 16) + 4 * (16 * 32 + 32 * 32)) + 32 * 2
  assert sparse['forward'] - dense['forward'] == 2 * router
  stages = [(16, 8, 8), (8, 16, 4), (16, 16, 2)]                      # channels in and out, side
  convolutions = sum(9 * pixels[side] * (i * o + o * o) + pixels[side] * i * o for i, o, side in stages)
  assert dense['forward'] == 2 * (9 * 64 * 16 + convolutions + 16 * 10)
  assert sparse['train'] == pytest.approx(3 * sparse['forward'] * (2 + 5 / 3))


@pytest.mark.parametrize('fields, said', [
    (dict(depths=(1,)), r'depths=\(1,\)'), (dict(blocks={'d': {}}), 'of d')])
def test_mistakes_are_one_line(fields, said):
  with pytest.raises(errors.UserError, match=said) as caught:
    make(**fields)
  assert '\n' not in str(caught.value)
