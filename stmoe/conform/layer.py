"""What every layer must do that stands in a block."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import modules
from stmoe.conform import generic
from stmoe.conform import in_model
from stmoe.core import contract

B, T, D = 4, 6, 8
REAL = np.array([6, 4, 6, 3])                                        # real tokens of each row
MASK = np.arange(T) < REAL[:, None]


def answers(name: str, **fields) -> None:
  """It returns (y like x, what it reports, a carry like the one it got), in float32 and in bfloat16."""
  layer, x = _build(name, **fields), _x()
  for dtype in (jnp.float32, jnp.bfloat16):
    y, aux, kept = _call(layer, x.astype(dtype))
    of_x = f'{x.astype(dtype).dtype}{list(x.shape)}'
    assert y.shape == x.shape and y.dtype == dtype, f'y is {y.dtype}{list(y.shape)} for {of_x}'
    assert kept, 'the carry is not like the one that was given'
    for part, report in contract.keyed('layer', aux).items():
      assert isinstance(report, contract.Aux), f'{part} reports a {type(report).__name__}; wanted: Aux'


def padding_changes_nothing(name: str, **fields) -> None:
  """What stands in padding changes nothing of real tokens."""
  layer, x = _build(name, **fields), _x()
  y, aux, _ = _call(layer, x)
  z, bux, _ = _call(layer, jnp.where(MASK[..., None], x, 1e3))
  np.testing.assert_array_equal(y[MASK], z[MASK])
  jax.tree.map(np.testing.assert_array_equal, aux, bux)


def every_parameter_has_a_gradient(name: str, **fields) -> None:
  """Every parameter has a finite gradient, not 0, in training."""
  for path, g in nnx.to_flat_state(nnx.state(_gradients(_build(name, **fields), _x()), nnx.Param)):
    assert bool(jnp.all(jnp.isfinite(g[...]))), f'the gradient of {path} is not finite'
    assert bool(jnp.any(g[...] != 0)), f'the gradient of {path} is 0'


def rows_do_not_meet(name: str, **fields) -> None:
  """Rows of a batch do not change one another, so that microbatches and devices are the whole batch."""
  layer, x = _build(name, **fields), _x()
  y, _, _ = _call(layer, x)
  halves = [_call(layer, x, rows=part)[0] for part in (slice(0, 2), slice(2, 4))]
  np.testing.assert_allclose(np.concatenate(halves)[MASK], y[MASK], rtol=1e-5, atol=1e-6)


def evaluation_draws_nothing(name: str, **fields) -> None:
  """Evaluation needs no key, and a key changes nothing."""
  layer, x = _build(name, **fields), _x()
  np.testing.assert_array_equal(_call(layer, x)[0], _call(layer, x, key=jax.random.key(0))[0])


def reports_of_microbatches_add_up(name: str, **fields) -> None:
  """Losses, loads and metrics of training are of the whole batch, in one part or in microbatches."""
  in_model.reports_of_microbatches_add_up(layer=name, **generic.needed('layer', name, fields))


def decoding_says_the_same(name: str, **fields) -> None:
  """Decoding with a cache says what the whole text does, or `undecodable` is said."""
  in_model.decoding_says_the_same(layer=name, **generic.needed('layer', name, fields))


@generic.cached
def _build(name, **fields):
  return generic.layer(name, D, **fields)


def _x():
  return jax.random.normal(jax.random.key(1), (B, T, D))


@functools.partial(jax.jit, static_argnames='train')
def _run(layer, x, mask, key, given, train):
  ctx = contract.Context.of(jnp.where(mask, jnp.arange(1, T + 1), 0), mask=mask, key=key, train=train,
                            vocab_size=generic.VOCAB, given=given)
  carry = modules.init_carry(layer, x)
  y, aux, after = layer(x, ctx, carry)
  alike = jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry)
  return y, aux, jnp.bool_(alike)


def _call(layer, x, key=None, rows=slice(0, B)):
  """(y, aux, whether the carry is like the one given) in evaluation, of some rows."""
  given = {name: a[rows] for name, a in generic.given(layer, B).items()}
  return _run(layer, x[rows], jnp.asarray(MASK[rows]), key, given, False)


@jax.jit
def _gradients(layer, x):
  def value(layer):
    key, given = jax.random.key(3, impl='unsafe_rbg'), generic.given(layer, B)
    y, aux, _ = _run(layer, x, jnp.asarray(MASK), key, given, True)
    losses = sum(loss for report in contract.keyed('layer', aux).values() for loss in report.losses.values())
    return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))) + losses
  return jax.grad(value, allow_int=True)(layer)
