"""Contexts, and the small example that the routers' tests work through by hand."""

import jax
import jax.numpy as jnp
import pytest

from stmoe.core import contract

# Four tokens, two experts: expert 0 is wanted by tokens 0, 1, 2 and expert 1 by token 3.
PROBS = [[0.8, 0.2], [0.6, 0.4], [0.7, 0.3], [0.1, 0.9]]


@pytest.fixture
def logits():
  """f32[1,4,2] whose softmax is PROBS."""
  return jnp.log(jnp.array([PROBS]))


@pytest.fixture
def context():
  """Returns context(mask bool[G,S], **fields) -> Context."""
  def make(mask, **fields):
    mask = jnp.asarray(mask)
    i = mask.astype(jnp.int32)
    fields = dict(tokens=jnp.maximum(mask.sum(), 1).astype(jnp.float32), **fields)
    return contract.Context(mask=mask, ids=i, positions=i, segments=i, step=jnp.int32(0), **fields)
  return make


@jax.jit
def _call(router, x, ctx):
  return router(x, ctx, {})


@pytest.fixture
def call():
  """Returns call(router, x, context) -> Routed, compiled as one program."""
  return _call


@pytest.fixture
def edges():
  """Returns edges(assignment) -> set of (token, expert, slot, weight) of the first group's live edges."""
  def listed(a):
    rows = zip(*(field[0].tolist() for field in (a.token, a.expert, a.slot, a.weight)))
    return {(t, e, s, round(w, 4)) for t, e, s, w in rows if e < a.num_experts}
  return listed
