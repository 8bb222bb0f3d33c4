"""What a part of a model must do by itself, called on rows with padding: layers, heads, mixers, networks."""

import dataclasses
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


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
  """A kind of parts, and how they are called.

  file:  dotted name of the module whose checks they are.
  build: (name, **fields) -> module.
  run:   (module, x, mask, key=, given=, train=) -> (y, aux, whether the carry is like the one given).
  x:     [B,...,D], of which all axes but the last are those of padding.
  mask:  bool[B,...] what of x is real, and of y, whose first axes are these.
  """
  file: str
  build: typing.Callable
  run: typing.Callable
  x: np.ndarray = dataclasses.field(default_factory=lambda: X)
  mask: np.ndarray = dataclasses.field(default_factory=lambda: MASK)


def checks(kind: Kind) -> typing.Iterator[typing.Callable[..., None]]:
  """Yields the four checks below for a kind's file, called with a name and fields."""
  for rule in (padding_changes_nothing, every_parameter_has_a_gradient, rows_do_not_meet,
               evaluation_draws_nothing):
    yield generic.check_of(kind.file, rule, functools.partial(rule, kind))


def padding_changes_nothing(kind: Kind, name: str, **fields) -> None:
  """What stands in padding changes nothing of what is real."""
  module = kind.build(name, **fields)
  y, aux, _ = call(kind, module, kind.x)
  z, bux, _ = call(kind, module, np.where(kind.mask[..., None], kind.x, np.float32(1e3)))
  np.testing.assert_array_equal(y[kind.mask], z[kind.mask])
  jax.tree.map(np.testing.assert_array_equal, aux, bux)


def every_parameter_has_a_gradient(kind: Kind, name: str, **fields) -> None:
  """Every parameter has a finite gradient, not 0, in training."""
  for path, g in nnx.to_flat_state(nnx.state(_gradients(kind, kind.build(name, **fields)), nnx.Param)):
    assert bool(jnp.all(jnp.isfinite(g[...]))), f'the gradient of {path} is not finite'
    assert bool(jnp.any(g[...] != 0)), f'the gradient of {path} is 0'


def rows_do_not_meet(kind: Kind, name: str, **fields) -> None:
  """Rows of a batch do not change one another, so that microbatches and devices are the whole batch."""
  module, half = kind.build(name, **fields), len(kind.x) // 2
  y, _, _ = call(kind, module, kind.x)
  halves = [call(kind, module, kind.x, rows=part)[0] for part in (slice(0, half), slice(half, 2 * half))]
  np.testing.assert_allclose(np.concatenate(halves)[kind.mask], y[kind.mask], rtol=1e-5, atol=1e-6)


def evaluation_draws_nothing(kind: Kind, name: str, **fields) -> None:
  """Evaluation needs no key, and a key changes nothing."""
  module = kind.build(name, **fields)
  plain, keyed = (call(kind, module, kind.x, key=key)[0] for key in (None, jax.random.key(0)))
  np.testing.assert_array_equal(plain, keyed)


def call(kind: Kind, module: nnx.Module, x: typing.Any, key: jax.Array | None = None,
         rows: slice = slice(None)) -> tuple:
  """Returns (y, aux, whether the carry is like the one given) in evaluation, of some rows of x [B,...,D]."""
  given = {name: a[rows] for name, a in generic.given(module, len(x)).items()}
  return _run(kind, module, x[rows], jnp.asarray(kind.mask[rows]), key, given, False)


@functools.partial(jax.jit, static_argnames=('kind', 'train'))
def _run(kind, module, x, mask, key, given, train):
  y, aux, kept = kind.run(module, x, mask, key=key, given=given, train=train)
  return y, aux, jnp.bool_(kept)


@functools.partial(jax.jit, static_argnames='kind')
def _gradients(kind, module):
  def value(module):
    key, given = jax.random.key(3, impl='unsafe_rbg'), generic.given(module, len(kind.x))
    y, aux, _ = _run(kind, module, kind.x, jnp.asarray(kind.mask), key, given, True)
    losses = sum(loss for report in contract.keyed('own', aux).values() for loss in report.losses.values())
    return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))) + losses
  return jax.grad(value, allow_int=True)(module)


def sub_layer(count: typing.Callable[[jax.Array], jax.Array]) -> typing.Callable:
  """Returns `Kind.run` of what is called with (x [B,T,D], Context, carry) and returns (y, aux, carry).

  count: mask bool[B,T] -> f32[], what the losses of a batch are divided by.
  """
  def run(module, x, mask, **fields):
    ctx = contract.Context.of(jnp.where(mask, jnp.arange(1, mask.shape[1] + 1), 0), mask=mask,
                              tokens=count(mask), vocab_size=generic.VOCAB, **fields)
    carry = modules.init_carry(module, x)
    y, aux, after = module(x, ctx, carry)
    return y, aux, jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry)
  return run
