"""Ids: tokens of a text, places of a row, labels of whole rows. Each target is an id out of V."""

import functools
import math
import typing
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe import targets
from stmoe.errors import UserError

# Entries of a batch: ids and their weights. Of a text every token has one, of an image or a table the row.
ENTRIES = ('decoder_target_tokens', 'decoder_loss_weights'), ('labels', 'weights')


class Ids:
  """Cross entropy of the softmax over V ids, in nats per target.

  Args:
    z:               coefficient of log(Z)^2 of the output softmax.
    label_smoothing: e, see `cross_entropy`.
    sigmoid:         every id is a yes or no of its own, see `sigmoid_cross_entropy`.
    passes:          2 runs a batch twice with different keys (THOR, R-Drop): the loss is the sum of the two
      passes' losses.
    consistency:     coefficient of the passes' divergence, see `consistency`.
  Evaluation has neither smoothing nor these terms.
  """

  kinds, run = ('ids', 'positions', 'labels'), ''
  measures = {
      'loss/ce': targets.Measure('nats per token'),
      'eval/loss': targets.Measure('nats per token', said='eval loss {:.4f}'),
      'eval/accuracy': targets.Measure('', 'higher', 'accuracy {:.1%}'),
      'eval/perplexity': targets.Measure(''),
      'eval/bits_per_byte': targets.Measure('bits per byte', said='{:.4f} bits per byte', of_bytes=True),
  }

  def __init__(self, *, z: ranges.NonNegative = 0.0, label_smoothing: ranges.Below1 = 0.0,
               sigmoid: ranges.Flag = False, passes: ranges.Whole(1, 2) = 1,
               consistency: ranges.NonNegative = 0.0):
    if consistency and passes == 1:
      raise UserError(f'loss.consistency={consistency} with loss.passes=1: it weighs the divergence of two '
                      'passes; nearest: loss.passes=2')
    if sigmoid and (z or label_smoothing or consistency):
      raise UserError(f'loss.sigmoid=True has no softmax for loss.z={z}, label_smoothing={label_smoothing} '
                      f'and consistency={consistency}; set them to 0')
    self.z = z
    self.label_smoothing = label_smoothing
    self.sigmoid = sigmoid
    self.passes = passes
    self.consistency = consistency

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B,T], 1 on real targets."""
    return weights(batch)

  def counts(self, batch: dict) -> jax.Array:
    """Returns f32[], the real targets, at least 1."""
    return jnp.maximum(jnp.sum(weights(batch)), 1.0)

  def loss(self, outputs: jax.Array, batch: dict, counts: jax.Array) -> tuple:
    """Returns (f32[], metrics), see `targets.Target`: of two passes the means, but the divergence itself.

    Args:
      outputs: f32[B,T,V], of two passes f32[2,B,T,V]; where a row has a single id, [B,V] will do.
    """
    by_pass = [outputs] if self.passes == 1 else outputs
    sums = passes(by_pass, batch, self.z, self.label_smoothing, self.sigmoid)
    total = (sums['ce'] + sums['z']) / counts
    values = {'loss/ce': sums['ce'] / (self.passes * counts)}
    if self.z:
      values['loss/z'] = sums['z'] / (self.passes * counts)
    if self.passes > 1:
      values['loss/consistency'] = sums['consistency'] / counts
      total += self.consistency * values['loss/consistency'] if self.consistency else 0.0
    return total, values

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns dict(ce, correct), f32[] sums over the real targets, of outputs f32[B,T,V]."""
    sums = task(outputs, batch)
    return dict(ce=sums['ce'], correct=sums['correct'])

  def apart(self, outputs: jax.Array, others: jax.Array, temperature: float) -> jax.Array:
    """Returns f32[B,T], T^2 KL(others || outputs) of the softmaxes at temperature T of logits [B,T,V].

    0 for equal predictions.
    """
    log_p, log_q = (jax.nn.log_softmax(x / temperature) for x in (others, outputs))
    return temperature ** 2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

  def averaged(self, predict: Callable, keys: jax.Array) -> tuple:
    """Returns (logits f32[B,T,V], aux) of the mean of the distributions that `predict` gives for each key.

    Args:
      predict: key -> (logits f32[B,T,V], aux); one distribution at a time is in memory.
      keys:    [n] PRNG keys. Metrics are means over them.
    """
    def add(total, key):
      logits, aux = predict(key)
      return jnp.logaddexp(total, jax.nn.log_softmax(logits)), aux

    shape = jax.eval_shape(predict, keys[0])[0]
    total, aux = jax.lax.scan(add, jnp.full(shape.shape, -jnp.inf, shape.dtype), keys)
    return total - jnp.log(len(keys)), jax.tree.map(lambda x: jnp.mean(x, 0), aux)

  def metrics(self, totals: dict) -> dict:
    """Returns loss, perplexity, accuracy, number of the targets, and of text bits per byte."""
    loss = totals['ce'] / totals['weight']
    values = {'eval/loss': loss, 'eval/perplexity': float(np.exp(np.float64(loss))),
              'eval/accuracy': totals['correct'] / totals['weight'], 'eval/tokens': int(totals['weight'])}
    if 'bytes_per_token' in totals:
      values['eval/bits_per_byte'] = bits_per_byte(loss, totals['bytes_per_token'])
    return values


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
  """Returns the loss in bits per byte of text, from nats per token: 8.0 is a uniform guess of bytes."""
  return loss / math.log(2) / bytes_per_token


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def cross_entropy(logits: jax.Array, targets: jax.Array, z: float = 0.0,
                  label_smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
  """Returns (ce, z_term) f32[B,T]: cross entropy, and z * log(Z)^2 of the output softmax.

  With smoothing e the target has 1 - e on the right token and e / (V-1) on the other tokens.
  The entropy of that distribution is subtracted, so that a perfect prediction costs 0 (as in T5X).
  Only `logits` and log(Z) are kept for the backward pass, which forms the probabilities again.

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
    num_others = logits.shape[-1] - 1
    on, off = 1.0 - label_smoothing, label_smoothing / num_others
    entropy = -(on * jnp.log(on) + num_others * off * jnp.log(off))
    wrong = num_others * log_z - (jnp.sum(logits, axis=-1) - right)
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
def consistency(logits: jax.Array, others: jax.Array) -> jax.Array:
  """Returns f32[B,T], the symmetric divergence (KL(p||q) + KL(q||p)) / 2 of two predictions of a token.

  1/2 sum_v (p_v - q_v)(log p_v - log q_v) with p = softmax(logits), q = softmax(others): THOR
  (arXiv:2110.04260, eq. 5), R-Drop (arXiv:2106.14448, eq. 2). 0 for equal predictions. The gradient
  goes to both. Log-softmax keeps it finite where a probability underflows. Beside the
  logits only [B,T] arrays are kept for the backward pass, which forms the probabilities again.

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


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns f32[B,T]: every class is a yes or no of its own, sum_v log(1 + e^l_v) - l_target.

  This is the loss of V-MoE (arXiv:2106.05974) in training from scratch; V log 2 at zero logits.

  Args:
    logits:  f32[B,T,V].
    targets: i32[B,T].
  """
  right = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
  return jnp.sum(jax.nn.softplus(logits), axis=-1) - jnp.sum(jnp.where(right, logits, 0), axis=-1)


def read(batch: dict) -> tuple:
  """Returns (ids i32[B,T], weights [B,T]) of a batch."""
  ids, real = next(names for names in ENTRIES if names[0] in batch)
  return batch[ids], batch[real]


def of_rows(logits: jax.Array, batch: dict) -> jax.Array:
  """Returns logits [B,T,V] as they are, and logits [B,V] of a row's single id as [B,1,V]."""
  return logits[:, None] if logits.ndim == read(batch)[0].ndim else logits


def weights(batch: dict) -> jax.Array:
  """Returns f32[B,T], 1 on real targets."""
  return read(batch)[1].astype(jnp.float32)


def task(logits: jax.Array, batch: dict, z: float = 0.0, label_smoothing: float = 0.0,
         sigmoid: bool = False) -> dict[str, jax.Array]:
  """Returns dict of sums over the real targets of `batch`, f32[]: ce, z, correct.

  `sigmoid` takes `sigmoid_cross_entropy` in place of `cross_entropy`; z and smoothing are of the softmax.
  """
  targets, real = read(batch)[0], weights(batch)
  logits = of_rows(logits, batch)
  if sigmoid:
    ce, z_term = sigmoid_cross_entropy(logits, targets), jnp.zeros(targets.shape)  # [B, T]
  else:
    ce, z_term = cross_entropy(logits, targets, z, label_smoothing)  # [B, T]
  correct = jnp.argmax(logits, axis=-1) == targets
  return dict(ce=jnp.sum(ce * real), z=jnp.sum(z_term * real), correct=jnp.sum(correct * real))


def passes(logits: typing.Sequence[jax.Array] | jax.Array, batch: dict, z: float = 0.0,
           label_smoothing: float = 0.0, sigmoid: bool = False) -> dict[str, jax.Array]:
  """Returns dict of sums over the real targets of `batch` and over stochastic passes, f32[].

  ce, z, correct: of `task`, summed over the passes. consistency: between the first pass and the
  second; absent for a single pass.

  Args:
    logits: P arrays f32[B,T,V], of the passes of one batch.
  """
  by_pass = [task(of_pass, batch, z, label_smoothing, sigmoid) for of_pass in logits]
  sums = jax.tree.map(lambda *values: sum(values), *by_pass)
  if len(logits) > 1:
    first, second = (of_rows(of_pass, batch) for of_pass in logits)
    sums['consistency'] = jnp.sum(consistency(first, second) * weights(batch))
  return sums
