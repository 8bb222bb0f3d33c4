"""What every head of an encoder must do: two logits of every position, of a row by itself."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe.conform import generic
from stmoe.core import contract

B, T, D = 4, 6, 8
MASK = np.arange(T) < np.array([6, 4, 6, 3])[:, None]                # real tokens of each row


def answers(name: str, **fields) -> None:
  """It returns (logits f32[B,T,2], what it reports, the carry), of float32 and of bfloat16."""
  head, x = _build(name, **fields), _x()
  for dtype in (jnp.float32, jnp.bfloat16):
    y, aux = _call(head, x.astype(dtype), MASK)
    assert y.shape == (B, T, 2) and y.dtype == jnp.float32, (
        f'logits are {y.dtype}{list(y.shape)} of {jnp.dtype(dtype)}; wanted: float32{[B, T, 2]}')
    for part, report in contract.keyed('head', aux).items():
      assert isinstance(report, contract.Aux), f'{part} reports a {type(report).__name__}; wanted: Aux'


def padding_changes_nothing(name: str, **fields) -> None:
  """What stands in padding changes nothing of real tokens."""
  head, x = _build(name, **fields), _x()
  y, aux = _call(head, x, MASK)
  z, bux = _call(head, jnp.where(MASK[..., None], x, 1e3), MASK)
  np.testing.assert_array_equal(y[MASK], z[MASK])
  jax.tree.map(np.testing.assert_array_equal, aux, bux)


def every_parameter_has_a_gradient(name: str, **fields) -> None:
  """Every parameter has a finite gradient, not 0, in training."""
  for path, g in nnx.to_flat_state(nnx.state(_gradients(_build(name, **fields), _x(), MASK), nnx.Param)):
    assert bool(jnp.all(jnp.isfinite(g[...]))), f'the gradient of {path} is not finite'
    assert bool(jnp.any(g[...] != 0)), f'the gradient of {path} is 0'


def rows_do_not_meet(name: str, **fields) -> None:
  """Rows of a batch do not change one another, so that microbatches and devices are the whole batch."""
  head, x = _build(name, **fields), _x()
  y, _ = _call(head, x, MASK)
  halves = [_call(head, x[rows], MASK[rows])[0] for rows in (slice(0, 2), slice(2, 4))]
  np.testing.assert_allclose(np.concatenate(halves)[MASK], y[MASK], rtol=1e-5, atol=1e-6)


def evaluation_draws_nothing(name: str, **fields) -> None:
  """Evaluation needs no key, and a key changes nothing."""
  head, x = _build(name, **fields), _x()
  np.testing.assert_array_equal(_call(head, x, MASK)[0], _call(head, x, MASK, jax.random.key(0))[0])


@generic.cached
def _build(name, **fields):
  recipe = lookup.recipe('head', dict(name=name) | generic.needed('head', name, dict(length=T) | fields))
  return recipe(D, rngs=nnx.Rngs(0))


def _x():
  return jax.random.normal(jax.random.key(1), (B, T, D))


@functools.partial(jax.jit, static_argnames='train')
def _call(head, x, mask, key=None, train=False):
  """(logits, what is reported); `ctx.tokens` counts rows."""
  ctx = contract.Context.of(jnp.where(mask, jnp.arange(1, T + 1), 0), mask=mask, key=key, train=train)
  y, aux, _ = head(x, ctx.replace(tokens=jnp.sum(mask.any(1), dtype=jnp.float32)), {})
  return y, aux


@jax.jit
def _gradients(head, x, mask):
  def value(head):
    y, aux = _call(head, x, mask, jax.random.key(3, impl='unsafe_rbg'), train=True)
    losses = sum(loss for report in contract.keyed('head', aux).values() for loss in report.losses.values())
    return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))) + losses
  return jax.grad(value, allow_int=True)(head)
