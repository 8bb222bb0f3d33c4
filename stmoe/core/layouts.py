"""How the rows of experts lie in memory, so that an expert is written once.

An expert bank calls `linear`, `scale`, `shift` and `map` on its rows and does not know which
layout it got: `Buckets` [E,R,D] of capacity executors or `Ragged` [M,D] of dropless ones.
"""

from flax import struct
import jax
import jax.numpy as jnp


@jax.custom_vjp
def per_expert(x, w):
  """Returns x [E,R,D] times w [E,D,F] per expert: [E,R,F].

  The gradient to w is written out because autodiff produces it as [E,F,D] and transposes
  that, a strided pass over all weights at every step.

  >>> per_expert(jnp.array([[[1., 2.]], [[3., 4.]]]), jnp.array([[[1.], [1.]], [[0.], [2.]]])).tolist()
  [[[3.0]], [[8.0]]]
  """
  return jnp.einsum('erd,edf->erf', x, w)


def _per_expert_backward(saved, dy):
  x, w = saved
  return jnp.einsum('erf,edf->erd', dy, w), jnp.einsum('erd,erf->edf', x, dy)


per_expert.defvjp(lambda x, w: (per_expert(x, w), (x, w)), _per_expert_backward)


@struct.dataclass
class Buckets:
  """Rows in one buffer per expert; x: [E,R,D].

  >>> rows = Buckets(jnp.array([[[1., 2.]], [[3., 4.]]]))            # 2 experts, 1 row, D = 2
  >>> rows.scale(jnp.array([[1., 1.], [0., 1.]])).map(jnp.negative).x.tolist()
  [[[-1.0, -2.0]], [[-0.0, -4.0]]]
  """
  x: jax.Array

  def linear(self, w, b=None):
    """Returns rows times w [E,D,F] (plus b [E,F]) per expert: x [E,R,F]."""
    y = per_expert(self.x, w.astype(self.x.dtype))                   # [E, R, F]
    return Buckets(y if b is None else y + b.astype(y.dtype)[:, None])

  def scale(self, b):
    """Returns rows times b [E,F], elementwise per expert."""
    return Buckets(self.x * b.astype(self.x.dtype)[:, None])

  def shift(self, b):
    """Returns rows plus b [E,F] of their expert."""
    return Buckets(self.x + b.astype(self.x.dtype)[:, None])

  def map(self, f, *others):
    """Returns f of these rows (and of `others`), where f acts on every row [...,F] by itself."""
    return Buckets(f(self.x, *(o.x for o in others)))


@struct.dataclass
class Ragged:
  """Rows sorted by expert; x: [M,D], sizes: i32[E] rows of each expert.

  `jax.lax.ragged_dot` costs a dense matmul over all experts on CPU and CUDA: reference only.

  >>> rows = Ragged(jnp.array([[1.], [2.], [3.]]), jnp.array([1, 2]))   # expert 1 has two rows
  >>> rows.linear(jnp.array([[[1.]], [[10.]]])).x.tolist()
  [[1.0], [20.0], [30.0]]
  """
  x: jax.Array
  sizes: jax.Array

  def linear(self, w, b=None):
    """Returns rows times w [E,D,F] (plus b [E,F]) of their expert: x [M,F]."""
    y = jax.lax.ragged_dot(self.x, w.astype(self.x.dtype), self.sizes)   # [M, F]
    return self.replace(x=y if b is None else y + self._per_row(b))

  def scale(self, b):
    """Returns rows times b [E,F] of their expert, elementwise."""
    return self.replace(x=self.x * self._per_row(b))

  def shift(self, b):
    """Returns rows plus b [E,F] of their expert."""
    return self.replace(x=self.x + self._per_row(b))

  def map(self, f, *others):
    """Returns f of these rows (and of `others`), where f acts on every row [...,F] by itself."""
    return self.replace(x=f(self.x, *(o.x for o in others)))

  def _per_row(self, b):
    rows = self.x.shape[0]
    return jnp.repeat(b.astype(self.x.dtype), self.sizes, axis=0, total_repeat_length=rows)
