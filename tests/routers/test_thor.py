"""THOR: uniform draws shared as the mode says, one per layer and pass in training, none without a key."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.core import contract
from stmoe.routers import thor

# Two rows of 8: sentences of 3 and 4 tokens and padding; sentences of 2 and 6.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 2, 2, 2, 2, 2, 2]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 0, 1, 2, 3, 4, 5]])
SHARED = dict(                                                       # tokens of equal number share a draw
    token=np.arange(16).reshape(2, 8), sentence=[[0, 0, 0, 1, 1, 1, 1, 1], [2, 2, 3, 3, 3, 3, 3, 3]],
    time_step=POSITIONS, batch=np.zeros((2, 8), int))


@jax.jit
def run(router, x, ctx):
  return router(x, ctx, {})


def route(key=None, train=False, groups=2, experts=4, **fields):
  """Returns i32[groups,S], the experts of the two rows (padding: E), and Aux."""
  router = thor.Thor(3, num_experts=experts, rngs=nnx.Rngs(0), **fields)
  cut = lambda a: jnp.asarray(a).reshape(groups, -1)
  ctx = contract.Context(mask=cut(SEGMENTS > 0), ids=cut(SEGMENTS), positions=cut(POSITIONS),
                         segments=cut(SEGMENTS), step=jnp.int32(0), tokens=jnp.float32(15), key=key,
                         train=train)
  routed = run(router, jnp.zeros((*ctx.mask.shape, 3)), ctx)
  assert jnp.all(routed.assignment.weight == 1)
  return np.asarray(routed.assignment.expert), routed.aux


@pytest.mark.parametrize('mode', SHARED)
@pytest.mark.parametrize('groups', [1, 2, 4])
def test_who_shares_a_draw(mode, groups):
  """Also where a group holds both rows, or half of one."""
  real = SEGMENTS > 0
  numbers = np.asarray(SHARED[mode])
  drawn = [route(jax.random.key(k), groups=groups, eval_dispatch=mode)[0].reshape(2, 8) for k in range(12)]
  for number in np.unique(numbers[real]):
    mine = np.array([d[real & (numbers == number)] for d in drawn])  # [keys, tokens]
    assert (mine == mine[:, :1]).all()
    assert len(set(mine[:, 0].tolist())) > 1
  # Two different draws agree on some keys only.
  first = np.array([[d[real & (numbers == n)][0] for n in np.unique(numbers[real])] for d in drawn])
  assert all((first[:, i] != first[:, 0]).any() for i in range(1, first.shape[1]))


def test_training_draws_one_expert_for_the_batch_uniformly():
  drawn = [route(jax.random.key(k), train=True, eval_dispatch='0')[0] for k in range(200)]
  real = SEGMENTS > 0
  assert all((d[~real] == 4).all() and len(set(d[real].tolist())) == 1 for d in drawn)
  counts = np.bincount([d[0, 0] for d in drawn], minlength=4)
  assert counts.min() > 30                                           # 50 each, standard deviation 6


def test_without_a_key_experts_take_turns():
  expert, aux = route(experts=2)
  assert expert.tolist() == [[0, 0, 0, 1, 1, 1, 1, 2], [0, 0, 1, 1, 1, 1, 1, 1]]
  assert aux.load.tolist() == [5, 10] and aux.losses == {} and aux.metrics['drop_frac'] == 0
  assert (route(train=True)[0][SEGMENTS > 0] == 0).all()


@pytest.mark.parametrize('mode', SHARED)
def test_a_draw_is_the_same_whatever_is_beside_it(mode):
  """Tokens that are routed later, with the number of their text, have what they had beside all others."""
  key = jax.random.key(5)
  whole = route(key, eval_dispatch=mode)[0]
  router = thor.Thor(3, num_experts=4, eval_dispatch=mode, rngs=nnx.Rngs(0))
  ctx = contract.Context.of(jnp.ones((2, 1), jnp.int32), key=key, positions=jnp.array([[3], [5]]),
                            given={contract.TEXT_NUMBER: jnp.array([[1], [3]])})
  later = run(router, jnp.zeros((2, 1, 3)), ctx).assignment.expert
  assert later.ravel().tolist() == [whole[0, 6], whole[1, 7]]


def test_a_fixed_expert():
  for key in (None, jax.random.key(0)):
    assert (route(key, eval_dispatch='3')[0][SEGMENTS > 0] == 3).all()
    assert (route(key, eval_dispatch=3)[0][SEGMENTS > 0] == 3).all()


def test_layers_draw_their_own_experts():
  """The key of a layer is folded from its place, so two layers and two passes are independent."""
  ctx = contract.Context(*[None] * 6, key=jax.random.key(0))
  keys = [jax.random.fold_in(ctx.key, place) for place in range(40)]
  drawn = [route(key, train=True, experts=2)[0][0, 0] for key in keys]
  assert 8 < sum(drawn) < 32


@pytest.mark.parametrize('fields, message', [
    (dict(num_experts=1), 'num_experts=1 leaves nothing to draw; nearest: num_experts=2'),
    (dict(num_experts=4, eval_dispatch='sentnce'), "'sentnce' does not exist; nearest: sentence .there"),
    (dict(num_experts=4, eval_dispatch='4'), "'4' does not exist .*experts 0 to 3")])
def test_mistakes(fields, message):
  with pytest.raises(errors.UserError, match=message):
    thor.Thor(8, rngs=nnx.Rngs(0), **fields)
