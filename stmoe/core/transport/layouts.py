"""How the rows of experts lie in memory, so that an expert is written once.

An expert bank calls `linear`, `scale`, `shift`, `map` and `each` on its rows. The bank does not know which
layout it got: `Buckets` [E,R,D] of capacity executors or `Ragged` [M,D] of dropless executors. An array given
to `linear`, `scale` and `shift` has a leading E axis. An array without that axis is shared by all experts.

A bank whose experts are no such products says with `each` what one expert does to its rows. This function
acts on every row by itself: an expert's rows come in any number, order and company.
"""

import typing

from flax import struct
import jax
import jax.numpy as jnp

from stmoe.core.units import adapted


@jax.custom_vjp
def per_expert(x: jax.Array, w: jax.Array) -> jax.Array:
  """Returns x [E,R,D] times w [E,D,F] per expert: [E,R,F].

  The gradient to w is written out for speed: autodiff produces it as [E,F,D] and transposes
  that, a strided pass over all weights at every step.

  >>> per_expert(jnp.array([[[1., 2.]], [[3., 4.]]]), jnp.array([[[1.], [1.]], [[0.], [2.]]])).tolist()
  [[[3.0]], [[8.0]]]
  """
  return jnp.einsum('erd,edf->erf', x, w)


def _per_expert_backward(saved, dy):
  x, w = saved
  return jnp.einsum('erf,edf->erd', dy, w), jnp.einsum('erd,erf->edf', x, dy)


per_expert.defvjp(lambda x, w: (per_expert(x, w), (x, w)), _per_expert_backward)


class Buckets(struct.PyTreeNode):
  """Rows in one buffer per expert; x: [E,R,D].

  >>> rows = Buckets(jnp.array([[[1., 2.]], [[3., 4.]]]))            # 2 experts, 1 row, D = 2
  >>> rows.scale(jnp.array([[1., 1.], [0., 1.]])).map(jnp.negative).x.tolist()
  [[[-1.0, -2.0]], [[-0.0, -4.0]]]
  """
  x: jax.Array

  def linear(self, w: jax.Array, b: jax.Array | None = None) -> 'Buckets':
    """Returns rows times w [E,D,F] (plus b [E,F]) per expert: x [E,R,F]; shared: w [D,F], b [F]."""
    if isinstance(w, adapted.Adapted):
      return w.of_rows(self, b)
    w = w.astype(self.x.dtype)
    y = per_expert(self.x, w) if w.ndim == 3 else self.x @ w         # [E, R, F]
    return self.replace(x=y if b is None else y + self._per_row(b))

  def scale(self, b: jax.Array) -> 'Buckets':
    """Returns rows times b [E,F], or [F], elementwise per expert."""
    return self.replace(x=self.x * self._per_row(b))

  def shift(self, b: jax.Array) -> 'Buckets':
    """Returns rows plus b [E,F], or [F], of their expert."""
    return self.replace(x=self.x + self._per_row(b))

  def map(self, f: typing.Callable[..., jax.Array], *others: 'Buckets') -> 'Buckets':
    """Returns f of these rows (and of `others`), where f acts on every row [...,F] by itself."""
    return self.replace(x=f(self.x, *(o.x for o in others)))

  def each(self, f: typing.Callable[..., jax.Array], *arrays: jax.Array) -> 'Buckets':
    """Returns f(rows [R,D] of one expert, its parts of the arrays [E,...]) -> [R,F] of every expert.

    One expert after the other, so that f may be anything. With vmap a convolution would be a single
    convolution in E groups. The gradient of such a convolution is too large where the compiler splits its
    rows but not its kernels (XLA of jax 0.10.2).
    """
    arrays = tuple(a.astype(self.x.dtype) for a in arrays)
    return self.replace(x=jax.lax.map(lambda one: f(*one), (self.x, *arrays)))

  def _per_row(self, b):
    b = b.astype(self.x.dtype)
    return b[:, None] if b.ndim == 2 else b


class Ragged(struct.PyTreeNode):
  """Rows sorted by expert; x: [M,D], sizes: i32[E] rows of each expert.

  `jax.lax.ragged_dot` costs a dense matmul over all experts on CPU and CUDA: reference only.

  >>> rows = Ragged(jnp.array([[1.], [2.], [3.]]), jnp.array([1, 2]))   # expert 1 has two rows
  >>> rows.linear(jnp.array([[[1.]], [[10.]]])).x.tolist()
  [[1.0], [20.0], [30.0]]
  """
  x: jax.Array
  sizes: jax.Array

  def linear(self, w: jax.Array, b: jax.Array | None = None) -> 'Ragged':
    """Returns rows times w [E,D,F] (plus b [E,F]) of their expert: x [M,F]; shared: w [D,F], b [F]."""
    if isinstance(w, adapted.Adapted):
      return w.of_rows(self, b)
    w = w.astype(self.x.dtype)
    y = jax.lax.ragged_dot(self.x, w, self.sizes) if w.ndim == 3 else self.x @ w     # [M, F]
    return self.replace(x=y if b is None else y + self._per_row(b))

  def scale(self, b: jax.Array) -> 'Ragged':
    """Returns rows times b [E,F], or [F], of their expert, elementwise."""
    return self.replace(x=self.x * self._per_row(b))

  def shift(self, b: jax.Array) -> 'Ragged':
    """Returns rows plus b [E,F], or [F], of their expert."""
    return self.replace(x=self.x + self._per_row(b))

  def map(self, f: typing.Callable[..., jax.Array], *others: 'Ragged') -> 'Ragged':
    """Returns f of these rows (and of `others`), where f acts on every row [...,F] by itself."""
    return self.replace(x=f(self.x, *(o.x for o in others)))

  def each(self, f: typing.Callable[..., jax.Array], *arrays: jax.Array) -> 'Ragged':
    """Returns f(rows [.,D] of one expert, its parts of the arrays [E,...]) -> [.,F] of every expert.

    Every expert computes all M rows, as in `ragged_dot` on CPUs.
    """
    arrays = tuple(a.astype(self.x.dtype) for a in arrays)
    y = jax.lax.map(lambda one: f(self.x, *one), arrays)             # [E, M, F]
    row = jnp.arange(y.shape[1])
    expert = jnp.repeat(jnp.arange(y.shape[0]), self.sizes, total_repeat_length=row.size)
    return self.replace(x=y[expert, row])                            # [M, F]

  def _per_row(self, b):
    if b.ndim == 1:
      return b.astype(self.x.dtype)
    return jnp.repeat(b.astype(self.x.dtype), self.sizes, axis=0, total_repeat_length=self.x.shape[0])


class Fetched(struct.PyTreeNode):
  """Rows in any order, to each of which the arrays of its expert are fetched; x: [M,D], expert: i32[M].

  A row reads all weights of its expert: for many experts that are as small as a row.

  >>> rows = Fetched(jnp.array([[1.], [2.], [3.]]), jnp.array([1, 0, 1]))
  >>> rows.linear(jnp.array([[[1.]], [[10.]]])).x.tolist()
  [[10.0], [2.0], [30.0]]
  """
  x: jax.Array
  expert: jax.Array

  def linear(self, w: jax.Array, b: jax.Array | None = None) -> 'Fetched':
    """Returns rows times w [E,D,F] (plus b [E,F]) of their expert: x [M,F]; shared: w [D,F], b [F]."""
    if isinstance(w, adapted.Adapted):
      return w.of_rows(self, b)
    # Rounded after the fetch, so that the gradients of rows with one expert add up in the type of w.
    y = jnp.einsum('md,mdf->mf', self.x, self._of(w)) if w.ndim == 3 else self.x @ w.astype(self.x.dtype)
    return self.replace(x=y if b is None else y + self._per_row(b))

  def scale(self, b: jax.Array) -> 'Fetched':
    """Returns rows times b [E,F], or [F], of their expert, elementwise."""
    return self.replace(x=self.x * self._per_row(b))

  def shift(self, b: jax.Array) -> 'Fetched':
    """Returns rows plus b [E,F], or [F], of their expert."""
    return self.replace(x=self.x + self._per_row(b))

  def map(self, f: typing.Callable[..., jax.Array], *others: 'Fetched') -> 'Fetched':
    """Returns f of these rows (and of `others`), where f acts on every row [...,F] by itself."""
    return self.replace(x=f(self.x, *(o.x for o in others)))

  def each(self, f: typing.Callable[..., jax.Array], *arrays: jax.Array) -> 'Fetched':
    """Returns f(rows [1,D] of one expert, its parts of the arrays [E,...]) -> [1,F] of every row."""
    fetched = tuple(self._of(a) for a in arrays)
    return self.replace(x=jax.lax.map(lambda one: f(one[0][None], *one[1:])[0], (self.x, *fetched)))

  def _of(self, w):
    return w[self.expert].astype(self.x.dtype)

  def _per_row(self, b):
    return b.astype(self.x.dtype) if b.ndim == 1 else self._of(b)
