"""What `route` means: three operations of JAX."""

import jax
import jax.numpy as jnp


def route(logits, k):
  """Returns (weight f32[T,k], expert i32[T,k], counts i32[E]) of logits [T,E].

  >>> weight, expert, counts = route(jnp.log(jnp.array([[1., 2., 1.]])), 2)
  >>> weight.tolist(), expert.tolist(), counts.tolist()
  ([[0.5, 0.25]], [[1, 0]], [1, 1, 0])
  """
  probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)        # [T, E]
  weight, expert = jax.lax.top_k(probs, k)
  return weight, expert, jnp.bincount(expert.reshape(-1), length=logits.shape[1]).astype(jnp.int32)
