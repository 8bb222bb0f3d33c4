"""Rows sorted by expert as dropless executors give them to a bank, and how little of a bank's work they keep.

A bank runs on such rows twice. Forward, the bank's products are computed and their results z may be kept.
Backward, the same z are handed out instead of computed. So everything else of the bank (activations, gates,
biases) is recomputed element by element and differentiated by JAX. Each product differentiates into its two
transposes. Only the z are ever stored, or nothing, where the z are computed again.

The product that a bank ends with waits (`Product`): its result is needed for the output but not for any
gradient, because a combine weight g may as well go before it,

  sum_r g_r (h_r w + b) = sum_r ((g_r h_r) w + g_r b),

whose gradient to g_r is <dy_r w^T, h_r> + <dy_r, b> (SonicMoE, arXiv:2512.14080).

An array that all experts share counts as the array of a single expert that has all rows (`owned`).

Some rows are rows of tokens: the first x and the last dy. They come as tokens with a list (`Listed`).
Products are given the list, so that kernels can load rows by it and nobody gathers them. Code that reads the
rows themselves has them gathered.
"""

import functools
import typing

from flax import struct
import jax
import jax.numpy as jnp

from pallas_kernels import listing
from pallas_kernels import target
from pallas_kernels.gmm import api as gmm
from pallas_kernels.tgmm import api as tgmm
from stmoe.core import contract
from stmoe.core.transport import layouts
from stmoe.core.units import adapted


@struct.dataclass
class Listed:
  """The rows x[token]: x [T,D], token i32[M]."""
  x: jax.Array
  token: jax.Array


Factor = typing.Any                  # rows [M,.] as products read them: an array, or Listed


@struct.dataclass
class Kernels:
  """Products of rows of several experts.

  sizes: i32[E] rows of each expert. expert: i32[M] expert of each row, E for rows of no expert.
  """
  sizes: jax.Array
  expert: jax.Array

  def times(self, x: Factor, w: jax.Array) -> jax.Array:
    """Returns [M,F]: rows x [M,D], or Listed, times w [E,D,F] of their expert."""
    x, token = _parts(x)
    return gmm.gmm(x, w, self.sizes, token)

  def transposes(self, x: Factor, w: jax.Array,
                 dz: Factor) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients [M,D] and [E,D,F] of `times` for dz [M,F]; x and dz may be Listed."""
    (x, token), (dz, dz_token) = _parts(x), _parts(dz)
    dx = gmm.gmm(dz, w, self.sizes, dz_token, transposed=True)
    return dx, tgmm.tgmm(x, dz, self.sizes, token, dz_token)

  def of_rows(self, b: jax.Array) -> jax.Array:
    """Returns [M,F]: of b [E,F] the row of each row's expert."""
    return b.at[self.expert].get(mode='fill', fill_value=0)

  def added(self, dy: jax.Array) -> jax.Array:
    """Returns [E,F], the gradient of `of_rows`: the sum over the rows of each expert."""
    return tgmm.tgmm(jnp.ones((dy.shape[0], 1), dy.dtype), dy, self.sizes)[:, 0]

  def together(self) -> 'Kernels':
    """Returns the Kernels of a single expert that has all rows; rows of no expert stay so."""
    return Kernels(self.sizes.sum(keepdims=True), (self.expert >= self.sizes.size).astype(jnp.int32))


def _parts(x):
  """(array, list or None) of rows, as kernels take them."""
  return (x.x, x.token) if isinstance(x, Listed) else (x, None)


def _gathered(x):
  return listing.take(*_parts(x))


@struct.dataclass
class One:
  """Products of rows of the same expert, whose bank has arrays [1,...]."""

  def times(self, x: Factor, w: jax.Array) -> jax.Array:
    """Returns [B,F]: rows x [B,D] times w [1,D,F]."""
    return x @ w[0]

  def transposes(self, x: Factor, w: jax.Array, dz: Factor) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients [B,D] and [1,D,F] of `times` for dz [B,F]."""
    return jax.lax.dot_general(dz, w[0], (((1,), (1,)), ((), ()))), jnp.einsum('bd,bf->df', x, dz)[None]

  def of_rows(self, b: jax.Array) -> jax.Array:
    """Returns b [1,F], which every row has."""
    return b

  def added(self, dy: jax.Array) -> jax.Array:
    """Returns dy [1,F]: JAX has summed over the rows already, as b was broadcast to them."""
    return dy

  def together(self) -> 'One':
    """Returns itself: these rows are of one expert."""
    return self


def owned(ops: Kernels | One, w: jax.Array, ndim: int) -> tuple[Kernels | One, jax.Array]:
  """Returns (ops, w) with a leading expert axis: w [E,...] itself, or w [1,...] and one expert for all rows.

  ndim: the number of axes of experts' arrays; an array with an axis less is shared.
  """
  return (ops, w) if w.ndim == ndim else (ops.together(), w[None])


class Run:
  """Computes the products of a bank, and keeps their results in `kept`, a list of [M,F]."""

  def __init__(self, ops: Kernels | One):
    self.ops = ops
    self.kept: list[jax.Array] = []

  def product(self, rows: 'Grouped', w: jax.Array) -> jax.Array:
    """Returns [M,F]: Grouped rows [M,D] times w [E,D,F] of their expert, or [D,F] of all."""
    ops, w = owned(self.ops, w, 3)
    self.kept.append(ops.times(rows.factor, w))
    return self.kept[-1]


class Again:
  """Hands out the products that a `Run` kept, in the same order; `kept` None computes the products again.

  dy: [M,D'] or Listed, the gradient to the result.
  """

  def __init__(self, ops: Kernels | One, kept: tuple[jax.Array, ...] | None, dy: Factor):
    self.ops = ops
    self.kept = None if kept is None else list(kept)
    self.dy = dy

  def product(self, rows: 'Grouped', w: jax.Array) -> jax.Array:
    """Returns [M,F] as `Run.product` did; the gradient is that of the product."""
    ops, w = owned(self.ops, w, 3)
    z = ops.times(rows.factor, w) if self.kept is None else self.kept.pop(0)
    return known(rows.x, w, z, rows.factor, None, ops)


@jax.custom_vjp
def known(x: jax.Array, w: jax.Array, z: jax.Array, factor: Factor, dz: Factor,
          ops: Kernels | One) -> jax.Array:
  """Returns z [M,F], which is x [M,D] times w [E,D,F] per expert; only the gradient is computed.

  `factor` is x or its list, to be read instead of x. dz is the gradient that will arrive, its list, or None.
  """
  return z


def _known_backward(saved, arrived):
  w, factor, dz, ops = saved
  dx, dw = ops.transposes(factor, w, arrived.astype(w.dtype) if dz is None else dz)
  return dx, dw, None, None, None, None


known.defvjp(lambda x, w, z, factor, dz, ops: (z, (w, factor, dz, ops)), _known_backward)


@jax.custom_vjp
def of_rows(b: jax.Array, ops: Kernels | One) -> jax.Array:
  """Returns [M,F]: of b [E,F] the row of each row's expert."""
  return ops.of_rows(b)


of_rows.defvjp(lambda b, ops: (ops.of_rows(b), ops), lambda ops, dy: (ops.added(dy), None))


class Grouped:
  """Rows x [M,D] sorted by expert; `products` is a Run or an Again. Rows of no expert hold anything.

  factor: x as products read it, an array or Listed.
  """

  def __init__(self, x: jax.Array, products: Run | Again, factor: Factor = None):
    self.x = x
    self.products = products
    self.factor = x if factor is None else factor

  def linear(self, w: jax.Array, b: jax.Array | None = None) -> 'Grouped':
    """Returns rows times w [E,D,F] (plus b [E,F]) of their expert: x [M,F]; shared: w [D,F], b [F]."""
    if isinstance(w, adapted.Adapted):
      return w.of_rows(self, b)
    return Product(self, w.astype(self.x.dtype), b)

  def scale(self, b: jax.Array) -> 'Grouped':
    """Returns rows times b [E,F], or [F], of their expert, elementwise."""
    return Grouped(self.x * self.of_rows(b), self.products)

  def shift(self, b: jax.Array) -> 'Grouped':
    """Returns rows plus b [E,F], or [F], of their expert."""
    return Grouped(self.x + self.of_rows(b), self.products)

  def map(self, f: typing.Callable[..., jax.Array], *others: 'Grouped') -> 'Grouped':
    """Returns f of these rows (and of `others`), where f acts on every row [...,F] by itself."""
    return Grouped(f(self.x, *(o.x for o in others)), self.products)

  def each(self, f: typing.Callable[..., jax.Array], *arrays: jax.Array) -> 'Grouped':
    """Returns f(rows [M,D], arrays of their expert) -> [M,F]; of one expert only, see `by_products`."""
    return Grouped(f(self.x, *(a[0].astype(self.x.dtype) for a in arrays)), self.products)

  def weighed(self, gate: jax.Array) -> jax.Array:
    """Returns the rows times gate f32[M,1], [M,D]; for its gradient only."""
    return (self.x * gate).astype(self.x.dtype)

  def of_rows(self, b: jax.Array) -> jax.Array:
    """Returns [M,F]: of b [E,F] the row of each row's expert, or b [F] of all."""
    ops, b = owned(self.products.ops, b.astype(self.x.dtype), 2)
    return of_rows(b, ops)


class Product(Grouped):
  """The product of `rows` with w [E,D,F] or [D,F] plus b [E,F], [F] or None, computed when asked for."""

  def __init__(self, rows: Grouped, w: jax.Array, b: jax.Array | None):
    self.rows, self.w, self.b = rows, w, b
    self.products = rows.products

  @functools.cached_property                                         # computed when asked for
  def x(self) -> jax.Array:                                          # type: ignore[override]
    y = self.products.product(self.rows, self.w)                     # [M, F]
    return y if self.b is None else y + self.rows.of_rows(self.b)

  @property
  def factor(self) -> jax.Array:                                     # type: ignore[override]
    return self.x

  def weighed(self, gate: jax.Array) -> jax.Array:
    """Returns zeros [M,F] with the gradient of gate_r (x_r w + b): the weight goes before the product."""
    x = (self.rows.x * gate).astype(self.rows.x.dtype)               # [M, D]
    nothing = jnp.zeros((x.shape[0], self.w.shape[-1]), x.dtype)
    assert isinstance(self.products, Again)                          # other products are for values
    ops, w = owned(self.products.ops, self.w, 3)
    y = known(x, w, nothing, x, self.products.dy, ops)
    return y if self.b is None else y + (self.rows.of_rows(self.b) * gate).astype(y.dtype)


def forward(bank: contract.Bank, x: Factor, ops: Kernels | One,
            key: jax.Array | None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """Returns (y [M,D'], tuple of the [M,F] to keep) of a bank on rows x [M,D] or Listed."""
  run = Run(ops)
  out = bank(Grouped(_gathered(x), run, x), key)
  kept = tuple(run.kept)                                             # without the last product
  return out.x, kept


def backward(bank: contract.Bank, x: Factor, ops: Kernels | One, key: jax.Array | None,
             kept: tuple[jax.Array, ...] | None, gate: jax.Array, dy: Factor) -> tuple:
  """Returns the gradients to (bank, x [M,D], gate f32[M]) of gate times `forward`'s y, for dy [M,D'].

  `kept` is what `forward` said to keep, or None; x and dy may be Listed.
  """
  def weighed(bank, rows, gate):
    return bank(Grouped(rows, Again(ops, kept, dy), x), key).weighed(gate[:, None])
  _, pull = jax.vjp(weighed, bank, _gathered(x), gate)
  return pull(_gathered(dy))


class _Each(Exception):
  """A bank asked for more than products and functions of single rows."""


class _Products(layouts.Buckets):
  """Rows that have products only."""

  def map(self, f, *others):
    """As `Buckets.map`; raises _Each where f reads further floats, which rows of no expert would train."""
    if jax.closure_convert(f, self.x, *(o.x for o in others))[1]:
      raise _Each
    return super().map(f, *others)

  def each(self, f, *arrays):
    """Raises _Each."""
    raise _Each


def by_products(bank: contract.Bank, num_experts: int, x: jax.Array,
                key: jax.Array | None) -> bool:
  """Returns whether kernels compute a bank for rows like x [.,D].

  All of its work is products and functions of single rows then, in a dtype that kernels know.
  """
  if x.dtype not in target.DTYPES:
    return False
  shape: typing.Any = jax.ShapeDtypeStruct((num_experts, 1, x.shape[-1]), x.dtype)
  rows = _Products(shape)
  try:
    jax.eval_shape(lambda bank, rows: bank(rows, key), bank, rows)
  except _Each:
    return False
  return True
