"""S-BASE: the plan chooses in training, the logits in evaluation, and the gates ignore the plan."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stmoe import errors
from stmoe.routers import s_base

ALL = np.ones((1, 4), bool)
LOGITS = jnp.array([[[4.0, 0.0], [1.0, 0.5], [3.0, -1.0], [-1.0, 1.0]]])


@functools.partial(jax.jit, static_argnames=('k', 'balanced'))
def route(logits, mask, k=1, balanced=True):
  return s_base.s_base(logits, mask, 4, k, balanced=balanced)


def chosen(a):
  return {(t, e) for t, e in zip(a.token[0].tolist(), a.expert[0].tolist()) if e < a.num_experts}


def test_training_follows_the_plan_and_evaluation_the_logits():
  a, aux = route(LOGITS, ALL)
  # The columns of the plan are equal: token 1, which cares least, goes to expert 1.
  assert chosen(a) == {(0, 0), (1, 1), (2, 0), (3, 1)}
  assert aux.load.tolist() == [2, 2] and aux.metrics['displaced_frac'] == 0.25
  np.testing.assert_allclose(a.weight[0], jax.nn.sigmoid(jnp.array([4.0, 0.5, 3.0, 1.0])), rtol=1e-6)
  beside_padding = s_base.s_base(LOGITS, ALL, 4, 1, balanced=True, tokens=jnp.float32(2))[1]
  assert beside_padding.metrics['displaced_frac'] == 0.25            # a share of the load
  a, aux = route(LOGITS, ALL, balanced=False)
  assert chosen(a) == {(0, 0), (1, 0), (2, 0), (3, 1)} and aux.metrics['displaced_frac'] == 0


def test_a_single_gate_may_be_the_probability(call, context):
  router = s_base.SBase(8, num_experts=2, gates='softmax', rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (1, 4, 8))
  a = call(router, x, context(ALL)).assignment
  probs = jax.nn.softmax(jnp.einsum('gsd,de->gse', x, router.w[...], precision='highest'))
  np.testing.assert_allclose(a.weight[0], probs[0].max(axis=-1), rtol=1e-5)


def test_gates_of_two_choices_are_the_softmax_over_all():
  a, _ = route(LOGITS, ALL, k=2)
  gates = np.zeros((4, 2))
  gates[a.token[0], a.expert[0]] = a.weight[0]
  np.testing.assert_allclose(gates, jax.nn.softmax(LOGITS[0]), rtol=1e-6)


def test_the_plan_carries_no_gradient():
  grad = jax.jit(jax.grad(lambda logits: s_base.s_base(logits, ALL, 4)[0].weight.sum()))(LOGITS)
  gate = jax.nn.sigmoid(jnp.array([4.0, 0.5, 3.0, 1.0]))
  np.testing.assert_allclose(grad[0].sum(axis=-1), gate * (1 - gate), rtol=1e-5)
  assert float(jnp.sum(grad != 0)) == 4


def test_refusals(call, context):
  x = jnp.ones((1, 4, 8))
  router = s_base.SBase(8, num_experts=2, rngs=nnx.Rngs(0))
  with pytest.raises(errors.UserError, match='later tokens decide in a causal stack; set allow_causal=True'):
    call(router, x, context(ALL, train=True, causal=True))
  assert call(router, x, context(ALL, causal=True)).aux.load.sum() == 4
  with pytest.raises(errors.UserError, match='k=3 with num_experts=2'):
    s_base.SBase(8, num_experts=2, k=3, rngs=nnx.Rngs(0))


def test_one_expert_takes_all(call, context):
  router = s_base.SBase(8, num_experts=1, rngs=nnx.Rngs(0))
  assert call(router, jnp.ones((1, 4, 8)), context(ALL, train=True)).aux.load.tolist() == [4]
