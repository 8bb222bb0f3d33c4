"""The gMLP layer and its spatial maps: identities, documents, padding, what is refused."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import walk
from stmoe import lookup
from stmoe.core import contract
from stmoe.errors import UserError
from stmoe.layers import gmlp
from stmoe.layers import spatial

B, N, D, F, E = 2, 8, 6, 16, 4
DETERMINISTIC = dict(name='moe', router=dict(name='smlp_deterministic', num_experts=E),
                     experts=dict(name='feature'))
PARTIAL = DETERMINISTIC | dict(router=dict(name='partial_prediction', num_experts=E, allow_causal=True))


def layer(inner, **fields):
  """A layer whose weights are all drawn large enough to be seen."""
  rng = np.random.default_rng(1)
  made = nnx.eval_shape(lambda: gmlp.Gmlp(D, length=N, d_ff=F, inner=lookup.recipe('layer', inner),
                                          rngs=nnx.Rngs(0), **fields))
  nnx.update(made, jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), nnx.state(made)))
  return made


def context(segments, **fields):
  segments = np.asarray(segments, np.int32)
  positions = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
  return contract.Context(mask=segments > 0, ids=positions, positions=positions, segments=segments,
                          step=np.int32(0), tokens=np.float32(segments.size), **dict(causal=True) | fields)


WHOLE = np.ones((B, N), int)


def activations():
  return np.random.default_rng(0).normal(size=(B, N, D)).astype(np.float32)


def with_added(x, *at):
  x = x.copy()
  x[at] += 1
  return x


@jax.jit
def apply(module, x, ctx):
  return module(x, ctx, {})[0]


@jax.jit
def value_and_gradients(module, x, ctx):
  def value(module, x):
    y = module(x, ctx, {})[0]
    return jnp.sum(jnp.sin(y)), y
  (_, y), grads = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(module, x)
  return y, *grads


def test_starts_as_the_half_that_gates():
  made = jax.jit(lambda: gmlp.Gmlp(D, length=N, d_ff=F, rngs=nnx.Rngs(0)))()
  w, x = made.inner.w[...], activations()
  assert 0.9e-3 / N < jnp.abs(w).max() < 1e-3 / N and (made.inner.b[...] == 1).all()
  half = jax.nn.gelu(x @ made.wi[...], approximate=False)[..., :F // 2]
  np.testing.assert_allclose(apply(made, x, context(WHOLE)), half @ made.wo[...], atol=2e-3)


@pytest.mark.parametrize('executor', ['gather', 'blocks'])
def test_deterministic_experts_are_the_heads_of_the_unit(executor, monkeypatch):
  monkeypatch.setattr(walk, 'sizes', lambda *_: (2,))                         # compiles faster
  heads, experts = layer(dict(name='spatial', heads=E)), layer(DETERMINISTIC | dict(executor=executor))
  experts.inner.experts.w[...], experts.inner.experts.b[...] = heads.inner.w[...], heads.inner.b[...]
  x, ctx = activations()[:, :5], context(WHOLE[:, :5])               # 5 of the 8 positions
  (y, dexperts, dx), (y_heads, dheads, dx_heads) = (value_and_gradients(m, x, ctx) for m in (experts, heads))
  np.testing.assert_allclose(y, y_heads, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dx, dx_heads, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dexperts.inner.experts.w[...], dheads.inner.w[...], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dexperts.inner.experts.b[...], dheads.inner.b[...], rtol=1e-4, atol=1e-5)
  assert jnp.abs(dheads.inner.w[...]).max() > 0.1


def test_heads_have_matrices_of_their_own():
  w = np.array([[[2.]], [[3.]]], np.float32)                         # one position; channels 2, 3: head 1
  y = spatial.mix(np.ones((1, 4, 1), np.float32), w, np.array([[0.], [1.]], np.float32))
  assert y[0, :, 0].tolist() == [2, 2, 4, 4]


def test_toeplitz_by_hand():
  # Weight v[N-1-lag]: the last entry is the position itself, the first the farthest.
  w = spatial.toeplitz(*(jnp.array([v]) for v in ([1., 2., 3.], [1., 1., 10.], [1., -1., 1.])))
  assert w[0].T.tolist() == [[3, 0, 0], [2, -3, 0], [10, -20, 30]]   # transposed: a row is an output


INNERS = dict(dense=dict(name='spatial', heads=2), circulant=dict(name='spatial', circulant=True),
              deterministic=DETERMINISTIC, partial=PARTIAL)


@pytest.mark.parametrize('name', INNERS)
def test_packed_sequences_are_as_if_alone(name):
  """Three positions, then four of another sequence, then padding: each from its own position 0."""
  made = layer(INNERS[name], sequences=2)
  x, segments = activations(), np.array([[1, 1, 1, 2, 2, 2, 2, 0]] * B)
  y = apply(made, x, context(segments))
  first = apply(made, x, context(np.where(segments == 1, 1, 0)))
  moved = np.roll(x, -3, axis=1)
  second = apply(made, moved, context(np.roll(np.where(segments == 2, 1, 0), -3, axis=1)))
  np.testing.assert_allclose(y[:, :3], first[:, :3], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(y[:, 3:7], second[:, :4], rtol=1e-5, atol=1e-6)
  other = with_added(x, slice(None), [1, 7])
  np.testing.assert_array_equal(apply(made, other, context(segments))[:, 3:7], y[:, 3:7])


def test_a_sequence_too_many_is_noticed():
  y = apply(layer(INNERS['dense']), activations(), context([[1, 1, 1, 2, 2, 2, 2, 0]] * B))
  assert jnp.isfinite(y[:, :3]).all() and jnp.isnan(y[:, 3:7]).all() and jnp.isfinite(y[:, 7]).all()


def test_padding_is_mixed_with_nobody():
  both = layer(dict(name='spatial', causal=False))                   # causal rows see no padding anyway
  ctx = context(np.arange(N) < [[5], [8]], causal=False)
  x = activations()
  y, z = apply(both, x, ctx), apply(both, with_added(x, 0, slice(5, None)), ctx)
  np.testing.assert_array_equal(z[0, :5], y[0, :5])


def changed(made, causal=True):
  """Which positions' outputs change when the input at position 4 does: bool[N]."""
  x, ctx = activations(), context(WHOLE, causal=causal)
  return np.asarray(apply(made, with_added(x, slice(None), 4), ctx) != apply(made, x, ctx)).any(axis=(0, 2))


@pytest.mark.parametrize('name', ['dense', 'circulant', 'deterministic'])
def test_the_future_changes_nothing(name):
  assert changed(layer(INNERS[name])).tolist() == [False] * 4 + [True] * 4


def test_a_bidirectional_unit_leaks_and_is_refused_in_a_causal_stack():
  leaking = functools.partial(layer, dict(name='spatial', causal=False, allow_causal=True))
  assert changed(leaking()).all()
  assert changed(layer(dict(name='spatial', causal=False)), causal=False).all()
  with pytest.raises(UserError, match='layer spatial: causal=False.*causal stack'):
    changed(layer(dict(name='spatial', causal=False)))


def test_losses_count_sequences_not_positions():
  """An empty row changes the balance of nobody."""
  made = layer(PARTIAL)
  report = jax.jit(lambda made, x, ctx: made(x, ctx, {})[1])
  both, first = activations(), activations()
  both[1] = both[0]
  one, with_empty = report(made, both, context(WHOLE)), report(made, first, context(WHOLE * [[1], [0]]))
  np.testing.assert_allclose(with_empty.losses['balance'], one.losses['balance'], rtol=1e-6)
  np.testing.assert_array_equal(2 * with_empty.load, one.load)
  assert one.losses['balance'] >= 0.5 and with_empty.load.sum() == F // 2


def test_impossible_sizes_are_readable():
  with pytest.raises(UserError, match='weights are for 8 positions, rows have 9; set length=9'):
    apply(layer(INNERS['dense']), np.zeros((B, 9, D)), context(np.ones((B, 9))))
  with pytest.raises(UserError, match='d_ff=15 has no two equal halves; nearest: 14, 16'):
    gmlp.Gmlp(D, length=N, d_ff=15, rngs=nnx.Rngs(0))
  with pytest.raises(UserError, match='heads=3 does not divide the 8 channels'):
    apply(layer(dict(name='spatial', heads=3)), activations(), context(WHOLE))
