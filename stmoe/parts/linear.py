"""Products of tokens with a matrix."""

from flax import nnx
import jax
import jax.numpy as jnp

from stmoe import axes
from stmoe.core.units import adapted

Array = jax.Array | nnx.Variable


def apply(x: jax.Array, w: Array, b: Array | None = None) -> jax.Array:
  """Returns x w, plus b where there is one: [...,F] in the dtype of x, for x [...,D], w [D,F], b [F]."""
  y = adapted.times(axes.rows(x), w[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)
  return y if b is None else y + b[...].astype(x.dtype)


def logits(x: jax.Array, w: Array, b: Array | None = None) -> jax.Array:
  """Returns x w, plus b where there is one: f32[...,V], for x [...,D], w [D,V], b [V].

  Operands are in the dtype of x, forward and backward. Sums are float32, and so is the gradient to w.
  A matrix with an adapter beside it is multiplied in float32.
  """
  w = w[...]
  if x.dtype == jnp.float32 or isinstance(w, adapted.Adapted):
    return apply(x.astype(jnp.float32), w, b)
  y = _widened(axes.rows(x), w).reshape(*x.shape[:-1], -1)
  return y if b is None else y + b[...]


@jax.custom_vjp
def _widened(x, w):
  """f32[...,V]: x [...,D] times w [D,V], which is rounded to the dtype of x."""
  return _widened_forward(x, w)[0]


def _widened_forward(x, w):
  rounded = w.astype(x.dtype)
  nothing = jnp.zeros((0,), w.dtype)                                 # its dtype is that of the gradient
  return jnp.matmul(x, rounded, preferred_element_type=jnp.float32), (x, rounded, nothing)


def _widened_backward(saved, dy):
  x, w, nothing = saved
  dy, lead = dy.astype(x.dtype), tuple(range(x.ndim - 1))
  dw = jax.lax.dot_general(x, dy, ((lead, lead), ((), ())), preferred_element_type=jnp.float32)  # [D, V]
  return jax.lax.dot_general(dy, w, (((x.ndim - 1,), (1,)), ((), ()))), dw.astype(nothing.dtype)


_widened.defvjp(_widened_forward, _widened_backward)
