"""Soft MoE against the paper's equations written as loops, and what padding and causal stacks get."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe import lookup
from stmoe.core.execute import einsum
from stmoe.core.execute import gather
from stmoe.core.transport import layouts
from stmoe.routers import soft_moe

S, D, E, C = 5, 8, 3, 2
X = np.asarray(jax.random.normal(jax.random.key(0), (2, S, D)))
ALL = np.ones((2, S), bool)


def build(slots=C):
  router = soft_moe.SoftMoe(D, num_experts=E, slots=slots, rngs=nnx.Rngs(0))
  router.w[...] = jax.random.normal(jax.random.key(2), router.w.shape)
  router.scale[...] = jnp.full(1, 3.0)
  return router


def bank(rows, key=None):
  """Expert e multiplies by e + 1 and adds 1, so that the order of experts and empty slots show."""
  return layouts.Buckets(rows.x * (1 + jnp.arange(E)[:, None, None]) + 1)


def by_loops(x, w, scale):
  """Algorithm 1 of the paper for one group, slot by slot and token by token; x [S,D], w [D,E*C]."""
  logits = np.zeros((len(x), E * C))
  for s, token in enumerate(x):
    for n in range(E * C):
      logits[s, n] = scale * token @ w[:, n] / np.linalg.norm(token) / np.linalg.norm(w[:, n])
  y = np.zeros_like(x)
  for n in range(E * C):
    share = np.exp(logits[:, n]) / np.exp(logits[:, n]).sum()        # over tokens
    out = (share @ x) * (1 + n // C) + 1                             # slots of an expert are neighbours
    for s in range(len(x)):
      y[s] += np.exp(logits[s, n]) / np.exp(logits[s]).sum() * out   # over slots
  return y


def test_equals_the_equations(call, context):
  router = build()
  routed = call(router, X, context(ALL))
  y = einsum.execute(X, routed.assignment, bank)
  w = np.asarray(router.w[...], np.float64)
  want = np.stack([by_loops(x.astype(np.float64), w, 3.0) for x in X])
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
  assert routed.aux.losses == {} and routed.aux.metrics['drop_frac'] == 0
  np.testing.assert_allclose(routed.aux.load.sum(), 2 * S, rtol=1e-6)


def test_padding_never_mixes_in(call, context):
  mask = np.arange(S) < np.array([[3], [0]])
  router, loud = build(), np.where(mask[..., None], X, 1e4).astype(np.float32)
  run = lambda x, mask: call(router, x, context(mask))
  a, b, short = run(X, mask), run(loud, mask), run(X[:1, :3], ALL[:1, :3])
  np.testing.assert_array_equal(a.assignment.dispatch, b.assignment.dispatch)
  np.testing.assert_array_equal(a.assignment.combine, b.assignment.combine)
  jax.tree.map(np.testing.assert_array_equal, a.aux, b.aux)
  y = einsum.execute(loud, a.assignment, bank)
  alone = einsum.execute(X[:1, :3], short.assignment, bank)
  np.testing.assert_allclose(y[:1, :3], alone, rtol=1e-4, atol=1e-5)
  assert not np.any(y[0, 3:]) and np.all(np.isfinite(y))             # the second group is all padding


def test_one_token_gets_every_slot(call, context):
  routed = call(build(), X[:, :1], context(ALL[:, :1]))
  np.testing.assert_allclose(routed.assignment.dispatch, 1.0)
  assert routed.aux.metrics['dispatch_conf'] == 1


def test_scale_sharpens_and_sizes_of_vectors_do_not_count(call, context):
  router = build()
  soft = call(router, X, context(ALL))
  router.w[...] = 7 * router.w[...]
  np.testing.assert_allclose(call(router, 5 * X, context(ALL)).assignment.combine, soft.assignment.combine,
                             rtol=1e-3)
  router.scale[...] = jnp.full(1, 30.0)
  assert call(router, X, context(ALL)).aux.metrics['router_conf'] > soft.aux.metrics['router_conf'] + 0.2


def test_gradients_reach_slots_and_scale(context):
  def loss(router):
    return jnp.sum(einsum.execute(X, router(X, context(ALL), {}).assignment, bank) ** 2)
  grads = jax.jit(jax.grad(loss))(build())
  assert jnp.all(jnp.abs(grads.w[...]).sum(axis=0) > 1e-6) and abs(grads.scale[0]) > 1e-6


def test_refusals(call, context):
  with pytest.raises(errors.UserError, match='causal stack'):
    build()(X, context(ALL, causal=True), {})
  soft_moe.SoftMoe(D, num_experts=E, allow_causal=True, rngs=nnx.Rngs(0))(X, context(ALL, causal=True), {})
  with pytest.raises(errors.UserError, match='slots=0'):
    build(slots=0)
  with pytest.raises(errors.UserError, match="executor='einsum'"):
    gather.execute(X, call(build(), X, context(ALL)).assignment, bank)


def test_encoders_take_it_and_decoders_refuse_it():
  blocks = dict(d=dict(layer='dense', d_ff=8),
                s=dict(layer='moe', executor='einsum', router=dict(name='soft_moe', num_experts=E),
                       experts=dict(name='mlp', d_ff=8)))
  def shapes(**patterns):
    fields = dict(name='t5', vocab_size=11, d_model=D, num_heads=1, head_dim=D, **patterns)
    row = jnp.ones((2, S), jnp.int32)
    batch = {f'{stack}_{name}': row for stack in ('encoder', 'decoder')
             for name in ('input_tokens', 'segment_ids', 'positions')}
    return jax.eval_shape(lambda: lookup.recipe('model', fields)(blocks=blocks, rngs=nnx.Rngs(0))(batch))
  logits, aux = shapes(encoder=(('ds', 1),), decoder=(('d', 1),))
  assert logits.shape == (2, S, 11) and list(aux) == ['encoder_01']
  with pytest.raises(errors.UserError, match='causal stack'):
    shapes(encoder=(('d', 1),), decoder=(('s', 1),))
