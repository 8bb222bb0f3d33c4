"""Tokens go to other groups and come back to their places, with all that is known of them."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe import lookup
from stmoe.core import contract
from stmoe.layers import shuffled

B, T, D, SIZE = 4, 8, 4, 8                                           # 4 groups of 8, two tokens to each group
X = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
ROWS = np.pad(X, [(0, 0), (0, 0), (0, 6)])                           # with room for what a layer saw
KEYS = [jax.random.key(seed, impl='unsafe_rbg') for seed in range(2)]          # compiles fast


class Spy(nnx.Module):
  """A layer that returns what it saw: its input and, in the room beside, everything of the context."""

  def __init__(self, d_model, *, rngs):
    self.router, self.group_size = 'none', SIZE

  def __call__(self, x, ctx, carry):
    seen = jnp.stack([ctx.ids, ctx.positions, ctx.segments, ctx.mask], axis=-1).astype(jnp.float32)
    places = jnp.arange(B * T, dtype=jnp.float32).reshape(B, T)      # where the token is now
    return jnp.concatenate([x[..., :D], seen, carry['memory'], places[..., None]], axis=-1), None, carry


def context(**fields):
  ids = jnp.arange(B * T).reshape(B, T)
  return contract.Context(mask=ids % 5 > 0, ids=ids, positions=ids % T, segments=1 + ids // T,
                          step=jnp.int32(0), tokens=jnp.float32(B * T), **fields)


@jax.jit
def run(layer, x, ctx, carry):
  return layer(x, ctx, carry)


def build(inner):
  return shuffled.Shuffled(D, inner=lookup.recipe('layer', inner), rngs=nnx.Rngs(0))


def build_spy():
  return shuffled.Shuffled(D, inner=Spy, rngs=nnx.Rngs(0))


def spied(**fields):
  ctx = context(**fields)
  carry = dict(memory=ctx.ids[..., None] * 10.0)
  y, _, after = run(build_spy(), ROWS, ctx, carry)
  np.testing.assert_array_equal(after['memory'], carry['memory'])
  return ctx, np.asarray(y)


def test_everything_moves_with_its_token_and_returns():
  ctx, y = spied(train=True, key=KEYS[0])
  np.testing.assert_array_equal(y[..., :D], X)
  for at, array in enumerate((ctx.ids, ctx.positions, ctx.segments, ctx.mask, 10 * ctx.ids)):
    np.testing.assert_array_equal(y[..., D + at], array)
  place = y[..., -1].astype(int)                                     # of each token of group g = row g
  assert sorted(place.ravel()) == list(range(B * T))
  # Two tokens of each group in every group, in order of the senders.
  np.testing.assert_array_equal(np.sort(place // T, axis=1), np.tile(np.repeat(np.arange(B), 2), (B, 1)))
  np.testing.assert_array_equal(place % T // 2, np.repeat(np.arange(B), T).reshape(B, T))
  assert (place[0] % T // 2 == 0).all()
  _, other = spied(train=True, key=KEYS[1])
  assert (other[..., -1] != y[..., -1]).any()


@pytest.mark.parametrize('fields', [dict(train=True), dict(key=KEYS[0])], ids=['no key', 'evaluation'])
def test_nothing_moves_otherwise(fields):
  _, y = spied(**fields)
  np.testing.assert_array_equal(y[..., -1].ravel(), np.arange(B * T))


def test_deal_by_hand():
  # Group 0 sends its tokens 1, 2 to group 0 and 0, 3 to group 1; group 1 (tokens 4 to 7) sends 7, 6 and 5, 4.
  dealt = shuffled.deal(jnp.array([[1, 2, 0, 3], [7, 6, 5, 4]]))
  assert dealt.tolist() == [[1, 2, 7, 6], [0, 3, 5, 4]]


def test_groups_must_divide_their_tokens():
  layer = shuffled.Shuffled(D, inner=Spy, rngs=nnx.Rngs(0))
  layer.group_size = 2                                               # 16 groups of 2 tokens
  with pytest.raises(errors.UserError, match='each of the 16 routing groups .* 2 tokens') as caught:
    run(layer, X, context(train=True, key=KEYS[0]), {})
  assert '\n' not in str(caught.value)


def test_groups_are_those_of_the_layer_that_routes():
  moe = dict(name='moe', group_size=SIZE, router=dict(name='switch', num_experts=2),
             experts=dict(name='mlp', d_ff=4))
  assert build(moe).group_size == SIZE
  assert build(dict(name='shuffled', inner=moe)).group_size == SIZE  # however deep it is wrapped


def test_a_layer_without_router_is_refused():
  with pytest.raises(errors.UserError, match='inner layer routes nothing; nearest: inner.name=moe'):
    build(dict(name='dense', d_ff=4))


def test_on_several_devices_tokens_travel_in_all_to_alls_only():
  """And come to the same places as on one."""
  spy, ctx = build_spy(), context(train=True, key=KEYS[0])
  want = run(spy, ROWS, ctx, dict(memory=ctx.ids[..., None] * 10.0))[0]
  with axes.use(axes.make_mesh(data=2, expert=2, devices=jax.devices()[:4])):
    rows = jax.NamedSharding(jax.sharding.get_mesh(), axes.spec(('batch',)))
    x, memory = (jax.device_put(a, rows) for a in (ROWS, ctx.ids[..., None] * 10.0))
    compiled = jax.jit(run).lower(spy, x, ctx, dict(memory=memory)).compile()
    np.testing.assert_array_equal(compiled(spy, x, ctx, dict(memory=memory))[0], want)
  text = compiled.as_text()
  assert 'all-to-all' in text and 'all-gather' not in text
