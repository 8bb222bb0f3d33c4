"""What a sub-layer must do by itself, called on rows with padding: layers and heads alike."""

import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe import modules
from stmoe.conform import generic
from stmoe.core import contract

B, T, D = 4, 6, 8
REAL = np.array([6, 4, 6, 3])                                        # real tokens of each row
MASK = np.arange(T) < REAL[:, None]
X = np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)


class Kind(typing.NamedTuple):
  """A kind of sub-layers.

  file:  dotted name of the module whose checks they are.
  build: (name, **fields) -> module.
  count: mask bool[B,T] -> f32[], what the losses of a batch are divided by.
  """
  file: str
  build: typing.Callable
  count: typing.Callable


def checks(kind: Kind) -> typing.Iterator[typing.Callable[..., None]]:
  """Yields the four checks below for a kind's file, called with a name and fields."""
  for rule in (padding_changes_nothing, every_parameter_has_a_gradient, rows_do_not_meet,
               evaluation_draws_nothing):
    yield generic.check_of(kind.file, rule, functools.partial(rule, kind))


def padding_changes_nothing(kind: Kind, name: str, **fields) -> None:
  """What stands in padding changes nothing of real tokens."""
  module = kind.build(name, **fields)
  y, aux, _ = call(kind, module, X)
  z, bux, _ = call(kind, module, np.where(MASK[..., None], X, np.float32(1e3)))
  np.testing.assert_array_equal(y[MASK], z[MASK])
  jax.tree.map(np.testing.assert_array_equal, aux, bux)


def every_parameter_has_a_gradient(kind: Kind, name: str, **fields) -> None:
  """Every parameter has a finite gradient, not 0, in training."""
  for path, g in nnx.to_flat_state(nnx.state(_gradients(kind, kind.build(name, **fields)), nnx.Param)):
    assert bool(jnp.all(jnp.isfinite(g[...]))), f'the gradient of {path} is not finite'
    assert bool(jnp.any(g[...] != 0)), f'the gradient of {path} is 0'


def rows_do_not_meet(kind: Kind, name: str, **fields) -> None:
  """Rows of a batch do not change one another, so that microbatches and devices are the whole batch."""
  module = kind.build(name, **fields)
  y, _, _ = call(kind, module, X)
  halves = [call(kind, module, X, rows=part)[0] for part in (slice(0, 2), slice(2, 4))]
  np.testing.assert_allclose(np.concatenate(halves)[MASK], y[MASK], rtol=1e-5, atol=1e-6)


def evaluation_draws_nothing(kind: Kind, name: str, **fields) -> None:
  """Evaluation needs no key, and a key changes nothing."""
  module = kind.build(name, **fields)
  np.testing.assert_array_equal(call(kind, module, X)[0], call(kind, module, X, key=jax.random.key(0))[0])


def call(kind: Kind, module: nnx.Module, x: typing.Any, key: jax.Array | None = None,
         rows: slice = slice(0, B)) -> tuple:
  """Returns (y, aux, whether the carry is like the one given) in evaluation, of some rows of x [B,T,D]."""
  given = {name: a[rows] for name, a in generic.given(module, B).items()}
  return _run(kind, module, x[rows], jnp.asarray(MASK[rows]), key, given, False)


@functools.partial(jax.jit, static_argnames=('kind', 'train'))
def _run(kind, module, x, mask, key, given, train):
  ctx = contract.Context.of(jnp.where(mask, jnp.arange(1, T + 1), 0), mask=mask, key=key, train=train,
                            vocab_size=generic.VOCAB, given=given)
  carry = modules.init_carry(module, x)
  y, aux, after = module(x, ctx.replace(tokens=kind.count(mask)), carry)
  alike = jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry)
  return y, aux, jnp.bool_(alike)


@functools.partial(jax.jit, static_argnames='kind')
def _gradients(kind, module):
  def value(module):
    key, given = jax.random.key(3, impl='unsafe_rbg'), generic.given(module, B)
    y, aux, _ = _run(kind, module, X, jnp.asarray(MASK), key, given, True)
    losses = sum(loss for report in contract.keyed('own', aux).values() for loss in report.losses.values())
    return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))) + losses
  return jax.grad(value, allow_int=True)(module)
