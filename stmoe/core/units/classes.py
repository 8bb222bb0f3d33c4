"""The loss of a class: a softmax over several classes, or a yes or no."""

import jax
import jax.numpy as jnp


def miss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns f32[...], the cross entropy of labels i32[...] for logits [...,C], in nats.

  One logit, C = 1, is a yes or no: label 1 or 0.

  >>> round(float(miss(jnp.zeros(4), jnp.array(3))), 4), round(float(miss(jnp.zeros(1), jnp.array(1))), 4)
  (1.3863, 0.6931)
  """
  if logits.shape[-1] == 1:
    logit = logits[..., 0]
    return jax.nn.softplus(logit) - labels * logit
  log_p = jax.nn.log_softmax(logits)
  labels = jnp.broadcast_to(labels, logits.shape[:-1])
  return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


def right(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns bool[...], whether the likeliest class is the label i32[...], for logits [...,C].

  >>> right(jnp.array([[0.1, 0.2], [0.3, 0.1]]), jnp.array([1, 1])).tolist()
  [True, False]
  """
  if logits.shape[-1] == 1:
    return (logits[..., 0] > 0) == (labels > 0)
  return jnp.argmax(logits, axis=-1) == labels
