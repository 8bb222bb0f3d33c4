"""BASE on examples worked by hand: balanced in training, greedy otherwise, its gate, its refusals."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import axes
from stmoe import errors
from stmoe.core import matching
from stmoe.routers import base

ALL = np.ones((1, 4), bool)
# Token 0, 1 and 2 want expert 0; token 1 loses least by going to expert 1: 0.5.
AFFINITIES = [[2.0, 0.0], [1.0, 0.5], [3.0, -1.0], [-1.0, 1.0]]


@pytest.fixture
def router():
  """A router whose affinities of x = AFFINITIES are AFFINITIES."""
  def make(**fields):
    made = base.Base(2, num_experts=2, rngs=nnx.Rngs(0), **fields)
    made.w[...] = jnp.eye(2)
    return made
  return make


def sigmoid(x):
  return round(float(1 / (1 + np.exp(-x))), 4)


def test_training_is_balanced(router, call, context, edges):
  routed = call(router(), jnp.array([AFFINITIES]), context(ALL, train=True))
  assert routed.assignment.capacity == 2
  assert edges(routed.assignment) == {(0, 0, 0, sigmoid(2)), (2, 0, 1, sigmoid(3)), (1, 1, 0, sigmoid(0.5)),
                                      (3, 1, 1, sigmoid(1))}
  aux = routed.aux
  assert aux.load.tolist() == [2, 2] and not aux.losses and aux.metrics['drop_frac'] == 0
  assert aux.metrics['displaced_frac'] == 0.25
  # Favourites sum to 2 + 1 + 3 + 1 = 7, a random assignment has 1 + 0.75 + 1 + 0 = 2.75, this one 6.5.
  np.testing.assert_allclose(aux.metrics['assignment_gap'], 0.5 / 4.25, rtol=1e-6)


def test_the_share_of_displaced_tokens_is_one_of_the_load(router, call, context):
  # Of a microbatch beside another of padding alone: tokens are half of its own, the load weighs the share.
  routed = call(router(), jnp.array([AFFINITIES]), context(ALL, train=True).replace(tokens=jnp.float32(2)))
  assert routed.aux.metrics['displaced_frac'] == 0.25


def test_evaluation_is_greedy_and_drops_nothing(router, call, context, edges):
  routed = call(router(), jnp.array([AFFINITIES]), context(ALL, causal=True))
  assert {(t, e) for t, e, *_ in edges(routed.assignment)} == {(0, 0), (1, 0), (2, 0), (3, 1)}
  assert routed.assignment.capacity == 4 and routed.aux.load.tolist() == [3, 1]
  assert routed.aux.metrics['assignment_gap'] == routed.aux.metrics['displaced_frac'] == 0


def test_padding_frees_its_place(router, call, context, edges):
  # Without token 2, the two others can have what they want.
  mask = np.array([[True, True, False, True]])
  x = jnp.array([AFFINITIES]).at[0, 2].set(1e4)
  routed = call(router(), x, context(mask, train=True))
  assert {(t, e) for t, e, *_ in edges(routed.assignment)} == {(0, 0), (1, 0), (3, 1)}
  assert routed.aux.load.tolist() == [2, 1] and routed.aux.metrics['assignment_gap'] == 0


def test_only_the_gate_has_a_gradient(context):
  x = jnp.array([AFFINITIES])

  def total(x):
    choice = jnp.array([[0, 1, 0, 1]])
    return base.base(x, ALL, choice, 2)[0].weight.sum()
  expected = np.zeros((4, 2))
  for token, expert in enumerate((0, 1, 0, 1)):
    gate = 1 / (1 + np.exp(-AFFINITIES[token][expert]))
    expected[token, expert] = gate * (1 - gate)
  np.testing.assert_allclose(jax.jit(jax.grad(total))(x)[0], expected, rtol=1e-5)


def test_experts_choose_in_random_order(router, call, context):
  made = router(assignment='greedy_balanced')
  x = jnp.array([[[9.0, 8.0], [7.0, 6.0], [1.0, 0.0], [0.0, -1.0]]])
  contexts = [context(ALL, train=True, key=jax.random.key(seed)) for seed in range(12)]
  found = {tuple(call(made, x, ctx).assignment.expert[0].tolist()) for ctx in contexts}
  assert found == {(0, 0, 1, 1), (1, 1, 0, 0)}                       # whoever is first takes tokens 0 and 1


def test_embeddings_are_orthogonal_and_small():
  w = base.Base(16, num_experts=4, rngs=nnx.Rngs(0)).w[...]
  np.testing.assert_allclose(w.T @ w, 0.01 * np.eye(4), atol=1e-7)


@pytest.mark.parametrize('fields,size,causal,said', [
    (dict(), 5, False, r'num_experts=2 does not divide the 5 tokens .* nearest group_size: 4, 6'),
    (dict(num_experts=8), 4, False, r'num_experts=8 does not divide the 4 tokens .* nearest group_size: 8'),
    (dict(), 4, True, 'later tokens decide in a causal stack; set allow_causal=True'),
])
def test_refusals(call, context, fields, size, causal, said):
  router = base.Base(2, **dict(dict(num_experts=2), **fields), rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match=said) as caught:
    call(router, jnp.ones((1, size, 2)), context(np.ones((1, size), bool), train=True, causal=causal))
  assert '\n' not in str(caught.value)


def test_unknown_assignment_is_refused():
  with pytest.raises(errors.UserError, match="assignment has no choice 'auktion'; nearest: auction"):
    base.Base(2, num_experts=2, assignment='auktion', rngs=nnx.Rngs(0))


def test_one_expert_takes_all(call, context):
  router = base.Base(2, num_experts=1, allow_causal=True, rngs=nnx.Rngs(0))
  for train in (True, False):
    routed = call(router, jnp.array([AFFINITIES]), context(ALL, train=train, causal=True))
    assert routed.aux.load.tolist() == [4] and routed.aux.metrics['assignment_gap'] == 0


def test_auction_on_several_devices_is_that_of_one():
  affinities = jax.random.normal(jax.random.key(5), (8, 16, 4))
  assign = jax.jit(matching.auction)
  with axes.use(axes.make_mesh(data=4, expert=2)) as mesh:
    groups = jax.NamedSharding(mesh, axes.spec(('group',)))
    split = assign(*(jax.device_put(a, groups) for a in (affinities, jnp.ones((8, 16), bool))))
    assert len(split.addressable_shards) == 8
  np.testing.assert_array_equal(split, assign(affinities, jnp.ones((8, 16), bool)))
