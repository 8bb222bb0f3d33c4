"""The target of Mowst: a class for every node, out of the predictions of a weak and a strong expert."""

import copy

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import ranges
from stmoe import targets
from stmoe.core.units import mixture
from stmoe.errors import UserError

BINS = 10                              # of the confidence, in which evaluation counts nodes
# Which experts, weak and strong, learn alone before the mixture does.
FIRST = dict(none=(0.0, 0.0), weak=(1.0, 0.0), strong=(0.0, 1.0), both=(1.0, 1.0))


def likelihoods(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns f32[...,E], -log softmax(logits) of the labels, for logits [...,E,V] and labels i32[...]."""
  log_p = jax.nn.log_softmax(logits)
  return -jnp.take_along_axis(log_p, labels[..., None, None], axis=-1)[..., 0]


def separate(outputs: mixture.Mixture, labels: jax.Array) -> jax.Array:
  """Returns f32[...], c NLL(weak) + (1 - c) NLL(strong) of labels i32[...] (arXiv:2311.05185)."""
  return jnp.sum(outputs.weights * likelihoods(outputs.logits, labels), axis=-1)


def joint(outputs: mixture.Mixture, labels: jax.Array) -> jax.Array:
  """Returns f32[...], NLL(c weak + (1 - c) strong), the logits mixed, of labels i32[...]."""
  mixed = jnp.sum(outputs.weights[..., None] * outputs.logits, axis=-2, keepdims=True)
  return likelihoods(mixed, labels)[..., 0]


def mixed(outputs: mixture.Mixture) -> jax.Array:
  """Returns f32[...,V], c softmax(weak) + (1 - c) softmax(strong)."""
  return jnp.sum(outputs.weights[..., None] * jax.nn.softmax(outputs.logits), axis=-2)


def drawn_right(outputs: mixture.Mixture, labels: jax.Array) -> jax.Array:
  """Returns f32[...], the share of draws in which the expert that answers is right."""
  right = jnp.argmax(outputs.logits, axis=-1) == labels[..., None]   # [..., E]
  return jnp.sum(outputs.answers * right, axis=-1)


def mixed_right(outputs: mixture.Mixture, labels: jax.Array) -> jax.Array:
  """Returns f32[...], 1 where the class of the largest mixed probability is right."""
  return (jnp.argmax(mixed(outputs), axis=-1) == labels).astype(jnp.float32)


LOSSES = dict(separate=separate, joint=joint)
ANSWERS = dict(drawn=drawn_right, mixed=mixed_right)


class Mowst:
  """The loss of a weak and a strong expert, and their accuracy together (arXiv:2311.05185).

  Args:
    mixing: 'separate', the mean of both experts' losses by confidence; 'joint', the loss of the mean of their
      logits.
    answer: who answers in evaluation: 'drawn', one expert by the confidence; 'mixed', the mean of both
      predictions.
    first:  which experts learn alone at first, 'none', 'weak', 'strong' or 'both', each by its own loss.
    first_steps: for how many steps.
  Evaluations have the accuracy of each expert alone, too. They have the share of nodes in every tenth of the
  confidence, and both experts' accuracy on these nodes. The loss of evaluation is that of the mixed
  probabilities, whoever answers.
  """

  kinds, passes, run = ('labels',), 1, ''
  measures = {
      'loss/ce': targets.Measure('nats per node'),
      'eval/loss': targets.Measure('nats per node', said='eval loss {:.4f}'),
      'eval/accuracy': targets.Measure('', 'higher', 'accuracy {:.1%}'),
      'eval/accuracy_weak': targets.Measure('', 'higher', 'weak {:.1%}'),
      'eval/accuracy_strong': targets.Measure('', 'higher', 'strong {:.1%}'),
      'eval/confidence': targets.Measure('', 'higher', 'confidence {:.3f}'),
  }

  def __init__(self, *, mixing: ranges.Choice(*LOSSES) = 'separate',
               answer: ranges.Choice(*ANSWERS) = 'drawn', first: ranges.Choice(*FIRST) = 'none',
               first_steps: ranges.Natural = 0):
    if (first == 'none') != (first_steps == 0):
      near = 'loss.first=strong' if first_steps else 'loss.first=none'
      raise UserError(f'loss.first={first!r} with loss.first_steps={first_steps}: who learns at first, and '
                      f'for how long, go together; nearest: {near}')
    self.mixing = LOSSES[mixing]
    self.answer = ANSWERS[answer]
    self.alone = np.array(FIRST[first], np.float32)
    self.first_steps = first_steps
    self.mixes: jax.Array | bool = True

  def at(self, step: jax.Array) -> 'Mowst':
    """Returns this target in step `step` i32[]: before `first_steps` the experts learn alone."""
    now = copy.copy(self)
    now.mixes = step >= self.first_steps
    return now

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[B,N], 1 of nodes that have a label of this split."""
    return batch['weights'].astype(jnp.float32)

  def counts(self, batch: dict) -> jax.Array:
    """Returns f32[], the sum of the weights."""
    return targets.divisor(self.weights(batch))

  def loss(self, outputs: mixture.Mixture, batch: dict, counts: jax.Array) -> tuple:
    """Returns (f32[], metrics) for a Mixture of nodes [B,N]; see `targets.Target`."""
    each = self.mixing(outputs, batch['labels'])                     # [B, N]
    if self.first_steps:
      alone = jnp.sum(self.alone * likelihoods(outputs.logits, batch['labels']), axis=-1)
      each = jnp.where(self.mixes, each, alone)
    mean = jnp.sum(self.weights(batch) * each) / counts
    return mean, {'loss/ce': mean}

  def judge(self, outputs: mixture.Mixture, batch: dict) -> dict:
    """Returns dict of sums f32[], of both experts f32[2], and by tenths of the confidence f32[BINS,3]."""
    labels, weights = batch['labels'], self.weights(batch)
    if labels.shape != outputs.weights.shape[:-1]:
      raise UserError(f'the model predicts nodes {list(outputs.weights.shape[:-1])}, and the data have '
                      f'labels {list(labels.shape)}; nearest: data.nodes=True')
    right = jnp.argmax(outputs.logits, axis=-1) == labels[..., None]  # [B, N, 2]
    confidence = outputs.weights[..., 0]
    chance = jnp.take_along_axis(mixed(outputs), labels[..., None], axis=-1)[..., 0]
    total = lambda x: jnp.sum(weights * x)
    place = jnp.clip((confidence * BINS).astype(jnp.int32), 0, BINS - 1)
    counted = weights[..., None] * jnp.concatenate([jnp.ones_like(right[..., :1]), right], axis=-1)
    return dict(ce=total(-jnp.log(jnp.maximum(chance, 1e-30))), correct=total(self.answer(outputs, labels)),
                confidence=total(confidence), experts=jnp.sum(weights[..., None] * right, axis=(0, 1)),
                tenths=jnp.zeros((BINS, 3)).at[place].add(counted))

  def metrics(self, totals: dict) -> dict:
    """Returns loss, accuracies, mean confidence, and 'eval/tenth_I_...' of every tenth I that has nodes."""
    number = totals['weight']
    values = {'eval/loss': totals['ce'] / number, 'eval/accuracy': totals['correct'] / number,
              'eval/accuracy_weak': totals['experts'][0] / number,
              'eval/accuracy_strong': totals['experts'][1] / number,
              'eval/confidence': totals['confidence'] / number, 'eval/tokens': int(number)}
    for tenth, (nodes, *right) in enumerate(totals['tenths']):
      if nodes:
        values[f'eval/tenth_{tenth}_nodes'] = nodes / number
        values |= {f'eval/tenth_{tenth}_{name}': r / nodes for name, r in zip(('weak', 'strong'), right)}
    return values
