"""Graph of Tokens: whom a token sees, the head that attention chooses, and what leaks."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import lookup
from stmoe.attention import graph_of_tokens as attention
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.parts import visible
from stmoe.routers import graph_of_tokens

MASK = jnp.array([[True] * 5 + [False]])
SEGMENTS = jnp.array([[1, 1, 1, 2, 2, 0]])
CTX = contract.Context(mask=MASK, ids=SEGMENTS, positions=jnp.array([[0, 1, 2, 0, 1, 0]]), segments=SEGMENTS,
                       step=0, tokens=jnp.float32(5))
X = jax.random.normal(jax.random.key(0), (1, 6, 8))


def build(**fields):
  return lookup.recipe('router', dict(dict(name='graph_of_tokens', num_experts=4, k=4, normalize_gates=False),
                                      **fields))(8, rngs=nnx.Rngs(0))


@jax.jit
def routed(router, x, ctx, carry):
  return router(x, ctx, carry)


def means(router, ctx=CTX, x=X, carry=None):
  """f32[S,E], p~ of every token."""
  return np.asarray(routed(router, x, ctx, carry or {}).assignment.masks()[1].sum(-1)[0])


def plain(router):
  return np.asarray(jax.nn.softmax(X @ router.w[...] + router.b[...])[0])


@pytest.mark.parametrize('fields, causal, rows', [
    (dict(), False, [0, 1, 2]), (dict(), True, [0, 1]), (dict(scope='earlier'), False, [0, 1]),
    (dict(scope='all', allow_causal=True), True, [0, 1, 2])])
def test_neighbours_are_real_tokens_of_the_sequence(fields, causal, rows):
  """With W_s = 0 all neighbours weigh the same; token 1 is in the middle of the first of two sequences."""
  router = build(**fields)
  router.similar[...] = jnp.zeros((8, 8))
  found = means(router, CTX.replace(causal=causal))
  np.testing.assert_allclose(found[1], plain(router)[rows].mean(0), rtol=1e-5)
  assert not found[5].any()
  np.testing.assert_allclose(found[:5].sum(-1), 1, rtol=1e-5)


def test_surer_neighbours_only():
  router = build(surer=True)
  router.w[...] = jax.random.normal(jax.random.key(1), (8, 4))
  router.similar[...] = jnp.zeros((8, 8))
  p = plain(router)
  entropy = -(p * np.log(p)).sum(-1)
  found = means(router)
  for i in range(3):
    np.testing.assert_allclose(found[i], p[:3][entropy[:3] <= entropy[i]].mean(0), rtol=1e-5)
  after = -(found[:5] * np.log(found[:5])).sum(-1)
  assert router(X, CTX, {}).aux.metrics['plain_entropy'] == pytest.approx(entropy[:5].mean(), rel=1e-5)
  assert np.isfinite(after).all()


def test_the_head_of_the_surest_rows_makes_the_graph():
  """Head 1 looks at one token in row 0 only, head 0 in row 1 only: row 0 chooses 1, both rows choose none."""
  even, sure = [0.5, 0.5], [1.0, 0.0]
  weights = jnp.array([[[even, sure], [sure, even]]])
  v = jnp.zeros((1, 2, 2, 1))
  graph, head = attention.graph(weights, v, jnp.tril(jnp.ones((1, 2, 2), bool)), 1.0)
  assert head.tolist() == [[1, 0]]                                   # equal means: the lower head
  np.testing.assert_allclose(graph[0], [sure, sure], atol=1e-6)
  # A value at distance 1 of the output loses exp(-1/2) against the output itself.
  v = jnp.array([[[0.0], [1.0]]])[..., None, :].reshape(1, 2, 1, 1)
  graph, _ = attention.graph(jnp.array([[[[0.5, 0.5]]]]), v, jnp.ones((1, 1, 1), bool), 0.5)
  np.testing.assert_allclose(graph[0, 0], [0.5, 0.5], rtol=1e-5)     # u = 1/2 is as far from both


def test_attention_hands_its_graph_to_the_router():
  layer = lookup.recipe('attention', dict(name='graph_of_tokens', head='earlier'))(
      8, num_heads=2, head_dim=4, rngs=nnx.Rngs(0))
  ctx = CTX.replace(causal=True, visible=visible.Visible(mask=visible.causal(SEGMENTS)))
  y, _, carry = layer(X, ctx, layer.init_carry(X))
  usual = lookup.recipe('attention', dict(name='attention'))(8, num_heads=2, head_dim=4, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(y, usual(X, ctx, {})[0], rtol=1e-6)
  graph = np.asarray(carry[graph_of_tokens.GRAPH][0])
  router = build(by='attention')
  expected = graph[:5, :5] @ plain(router)[:5]
  np.testing.assert_allclose(means(router, ctx, carry=carry)[:5], expected, rtol=1e-4)
  assert not np.triu(graph, 1).any() and graph[3, 2] == 0
  later = layer(X.at[0, 2].add(1), ctx, layer.init_carry(X))[2][graph_of_tokens.GRAPH][0]
  np.testing.assert_array_equal(later[:2], graph[:2])


def test_what_leaks_or_is_not_there_is_said():
  causal = CTX.replace(causal=True, visible=visible.Visible(mask=visible.causal(SEGMENTS)))
  with pytest.raises(UserError, match="scope='all' shows a token later ones in a causal stack; nearest"):
    means(build(scope='all'), causal)
  recipe = lookup.recipe('attention', dict(name='graph_of_tokens'))
  leaking = recipe(8, num_heads=2, head_dim=4, rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match="head='sequence' lets later tokens choose .*nearest: head='earlier'"):
    leaking(X, causal, {})
  with pytest.raises(UserError, match="by='attention', but the block's attention leaves no graph; nearest"):
    means(build(by='attention'))
  with pytest.raises(UserError, match='groups of whole sequences, not of 6 tokens; nearest: group_size=None'):
    means(build(by='attention'), carry={graph_of_tokens.GRAPH: jnp.zeros((1, 6, 3))})
