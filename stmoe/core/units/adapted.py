"""A matrix with an adapter beside it, which stands where the matrix stood (LoRA, arXiv:2106.09685).

Layers and banks read a matrix as `w[...]`. What they get may be an `Adapted`. Products of rows pass both
parts one after the other, so the sum of the parts is never made. All else that is asked of an `Adapted` is
answered by the sum, an array.
"""

import typing

from flax import struct
import jax
import jax.numpy as jnp

from stmoe.core import contract
from stmoe.core import noise
from stmoe.errors import UserError


class Adapted(struct.PyTreeNode):
  """W + s A B of w [...,D,F], a [...,D,r] and b [...,r,F]; leading axes are of layers, experts or heads.

  With a magnitude m [...,F] every column of W + s A B has the norm m (DoRA, arXiv:2402.09353): the column is
  divided by its own norm, from which no gradient comes, and multiplied by m.

  scale:        s.
  dropout_rate: of what enters A, where there is a key.
  key:          of one product; None = no dropout.
  where:        the name of the matrix, for messages.
  """
  w: jax.Array
  a: jax.Array
  b: jax.Array
  magnitude: jax.Array | None = None
  key: jax.Array | None = None
  scale: float = struct.field(pytree_node=False, default=1.0)
  dropout_rate: float = struct.field(pytree_node=False, default=0.0)
  where: str = struct.field(pytree_node=False, default='')

  def times(self, x: jax.Array) -> jax.Array:
    """Returns [N,F]: rows x [N,D] times w [D,F] + s a b."""
    w, a, b = (m.astype(x.dtype) for m in (self.w, self.a, self.b))
    y = x @ w + self.scale * ((self._dropped(x) @ a) @ b)            # [N, F]
    ratio = self.ratio()
    return y if ratio is None else y * ratio.astype(x.dtype)

  def of_rows(self, rows: contract.Rows, bias: jax.Array | None) -> contract.Rows:
    """Returns the rows [.,D] of experts times w [E,D,F] + s a b of theirs, plus bias [E,F]: [.,F]."""
    y = self.added(rows.linear(self.w), rows)
    return y if bias is None else y.shift(bias)

  def added(self, base: contract.Rows, rows: contract.Rows) -> contract.Rows:
    """Returns rows base [.,F] plus s a b times `rows` [.,D] of their expert: [.,F]; with m, that ratio of it.

    base: the rows times w, and a bias or not.
    """
    low = rows.map(self._dropped).linear(self.a).linear(self.b)      # [., F]
    y = base.map(lambda y, added: y + self.scale * added, low)
    ratio = self.ratio()
    return y if ratio is None else y.scale(ratio)

  def ratio(self) -> jax.Array | None:
    """Returns f32[...,F], m over the norms of the columns of W + s A B; None without m."""
    if self.magnitude is None:
      return None
    return self.magnitude / jax.lax.stop_gradient(norms(self._added()))

  def sum(self) -> jax.Array:
    """Returns W + s A B, [...,D,F] in the dtype of W, its columns of norm m where there is m.

    Raises UserError where dropout is to act on rows, which nobody sees here.
    """
    if self.key is not None:
      raise UserError(f'dropout_rate={self.dropout_rate} of an adapter: {self.where} is no matrix that rows '
                      'are multiplied by one after the other; nearest: dropout_rate=0.0')
    ratio = self.ratio()
    added = self._added() if ratio is None else self._added() * ratio[..., None, :]
    return added.astype(self.w.dtype)

  def astype(self, dtype: jax.typing.DTypeLike) -> 'Adapted':
    """Returns the same matrix [...,D,F], whose parts are rounded to `dtype`; m stays."""
    return self.replace(w=self.w.astype(dtype), a=self.a.astype(dtype), b=self.b.astype(dtype))

  def _added(self):
    return self.w.astype(jnp.float32) + self.scale * (
        self.a.astype(jnp.float32) @ self.b.astype(jnp.float32))     # [..., D, F]

  def _dropped(self, x):
    return noise.dropout(x, self.dropout_rate, self.key)

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape [...,D,F] of W."""
    return self.w.shape

  @property
  def ndim(self) -> int:
    """The number of axes of W [...,D,F]."""
    return self.w.ndim

  @property
  def dtype(self) -> jnp.dtype:
    """The dtype of W [...,D,F]."""
    return self.w.dtype

  def __getitem__(self, index):
    return self if index is Ellipsis else self.sum()[index]

  def __jax_array__(self):
    return self.sum()

  def __getattr__(self, name):
    if name.startswith('_'):             # what Python and JAX look for in any object
      raise AttributeError(name)
    return getattr(self.sum(), name)


def norms(w: jax.Array) -> jax.Array:
  """Returns f32[...,F], the norms of the columns of w [...,D,F].

  >>> norms(jnp.array([[3.0, 0.0], [4.0, 1.0]])).tolist()
  [5.0, 1.0]
  """
  return jnp.linalg.norm(w.astype(jnp.float32), axis=-2)


Matrix = jax.Array | Adapted


def times(x: jax.Array, w: typing.Any) -> jax.Array:
  """Returns [N,F]: rows x [N,D] times w [D,F], an array or an Adapted.

  >>> one = jnp.ones((1, 1))
  >>> times(one, Adapted(one, one, one, scale=2.0)).tolist()
  [[3.0]]
  """
  return w.times(x) if isinstance(w, Adapted) else x @ w
