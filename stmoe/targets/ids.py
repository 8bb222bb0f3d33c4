"""Ids: tokens of a text, places of a row, classes of images."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def cross_entropy(logits, targets, z=0.0, label_smoothing=0.0):
  """Returns (ce, z_term) f32[B,T]: cross entropy, and z * log(Z)^2 of the output softmax.

  With smoothing e the target has 1 - e on the right token and e / (V-1) on the others, and
  that distribution's entropy is subtracted, so that a perfect prediction costs 0 (as in T5X).
  Only `logits` and log(Z) are kept for the backward pass; probabilities are formed again in it.

  Args:
    logits:  f32[B,T,V].
    targets: i32[B,T].
  """
  return _cross_entropy(logits, targets, z, label_smoothing)[0]


def _cross_entropy(logits, targets, z, label_smoothing):
  log_z = jax.nn.logsumexp(logits, axis=-1)                          # [B, T]
  right = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  ce = log_z - right
  if label_smoothing:
    others = logits.shape[-1] - 1
    on, off = 1.0 - label_smoothing, label_smoothing / others
    entropy = -(on * jnp.log(on) + others * off * jnp.log(off))
    wrong = others * log_z - (jnp.sum(logits, axis=-1) - right)
    ce = on * ce + off * wrong - entropy
  return (ce, z * jnp.square(log_z)), (logits, targets, log_z)


def _backward(z, label_smoothing, kept, g):
  logits, targets, log_z = kept
  g_ce, g_z = (x[..., None] for x in g)
  probs = jnp.exp(logits - log_z[..., None])                         # [B, T, V]
  off = label_smoothing / (logits.shape[-1] - 1)
  right = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
  wanted = jnp.where(right, 1.0 - label_smoothing, off)
  return g_ce * (probs - wanted) + g_z * (2.0 * z * log_z[..., None]) * probs, None


cross_entropy.defvjp(_cross_entropy, _backward)


@jax.custom_vjp
def consistency(logits, others):
  """Returns f32[B,T], the symmetric divergence (KL(p||q) + KL(q||p)) / 2 of two predictions of a token.

  1/2 sum_v (p_v - q_v)(log p_v - log q_v) with p = softmax(logits), q = softmax(others): THOR
  (arXiv:2110.04260, eq. 5), R-Drop (arXiv:2106.14448, eq. 2). 0 for equal predictions. The gradient
  goes to both. From log-softmax, so that it stays finite where a probability underflows. Beside the
  logits only [B,T] arrays are kept for the backward pass; probabilities are formed again in it.

  Args:
    logits, others: f32[B,T,V].
  """
  return _consistency(logits, others)[0]


def _consistency(logits, others):
  log_z, log_y = (jax.nn.logsumexp(x, axis=-1) for x in (logits, others))          # [B, T]
  log_p, log_q = logits - log_z[..., None], others - log_y[..., None]              # [B, T, V]
  forth = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)         # KL(p||q)
  back = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)          # KL(q||p)
  return 0.5 * (forth + back), (logits, others, log_z, log_y, forth, back)


def _consistency_backward(kept, g):
  logits, others, log_z, log_y, forth, back = (x if x.ndim == 3 else x[..., None] for x in kept)
  log_p, log_q, g = logits - log_z, others - log_y, 0.5 * g[..., None]             # [B, T, V], [B, T, 1]
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  return (g * (p * (log_p - log_q - forth) + p - q), g * (q * (log_q - log_p - back) + q - p))


consistency.defvjp(_consistency, _consistency_backward)


def sigmoid_cross_entropy(logits, targets):
  """Returns f32[B,T]: every class is a yes or no of its own, sum_v log(1 + e^l_v) - l_target.

  The loss of V-MoE (arXiv:2106.05974) in training from scratch; V log 2 at zero logits.

  Args:
    logits:  f32[B,T,V].
    targets: i32[B,T].
  """
  right = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
  return jnp.sum(jax.nn.softplus(logits), axis=-1) - jnp.sum(jnp.where(right, logits, 0), axis=-1)


def weights(batch):
  """Returns f32[B,T], 1 on real target tokens."""
  return batch['decoder_loss_weights'].astype(jnp.float32)


def task(logits, batch, z=0.0, label_smoothing=0.0, sigmoid=False):
  """Returns dict of sums over the real target tokens of `batch`, f32[]: ce, z, correct.

  `sigmoid` takes `sigmoid_cross_entropy` in place of `cross_entropy`; z and smoothing are of the softmax.
  """
  targets, real = batch['decoder_target_tokens'], weights(batch)
  if sigmoid:
    ce, z_term = sigmoid_cross_entropy(logits, targets), jnp.zeros(targets.shape)  # [B, T]
  else:
    ce, z_term = cross_entropy(logits, targets, z, label_smoothing)  # [B, T]
  correct = jnp.argmax(logits, axis=-1) == targets
  return dict(ce=jnp.sum(ce * real), z=jnp.sum(z_term * real), correct=jnp.sum(correct * real))


def passes(logits, batch, z=0.0, label_smoothing=0.0, sigmoid=False):
  """Returns dict of sums over the real target tokens of `batch` and over stochastic passes, f32[].

  ce, z, correct: of `task`, summed over the passes. consistency: between the first pass and the
  second, not there for one.

  Args:
    logits: f32[P,B,T,V], P passes of one batch.
  """
  each = [task(one, batch, z, label_smoothing, sigmoid) for one in logits]
  sums = jax.tree.map(lambda *values: sum(values), *each)
  if len(logits) > 1:
    sums['consistency'] = jnp.sum(consistency(logits[0], logits[1]) * weights(batch))
  return sums
