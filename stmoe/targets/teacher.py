"""A teacher: what another model predicts is a target beside the data's target (distillation)."""

import typing

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe import targets
from stmoe.errors import UserError


class Teacher:
  """(1 - weight) times the loss of `inner`, and weight times the distance to the teacher's predictions.

  Knowledge distillation (arXiv:1503.02531, section 2). The distance is that of `inner`. For ids it is
  T^2 KL(teacher || student) of both softmaxes at temperature T, a mean over the targets; T^2 keeps its
  gradient of one size for every T. The distance is 0 for equal predictions.

  Args:
    inner:       recipe of the target of the data.
    run:         run directory of the teacher; '' = the data bring `targets.OUTPUTS` themselves. The teacher's
      model is held beside the model that trains, frozen and without capacity noise, and sees batches whole.
    step:        of the teacher's checkpoint; None = the newest.
    temperature: T.
    weight:      share of the distance in the loss.
  Differs: the paper minimises the cross entropy: this distance plus the teacher's entropy, a constant.
  """

  kinds, passes = (), 1                # those of `inner`
  measures = {'loss/distil': targets.Measure('nats per token'), 'eval/loss': targets.Measure('')}

  def __init__(self, *, inner: ranges.Named('target'), run: ranges.Text = '',
               step: ranges.Natural | None = None, temperature: ranges.Positive = 1.0,
               weight: ranges.Share = 0.5):
    self.inner = inner()
    if not hasattr(self.inner, 'apart'):
      raise UserError(f'loss.inner.name: {type(self.inner).__name__} has no distance of two predictions; '
                      'nearest: ids')
    self.run = str(run)
    self.step = step
    self.temperature = temperature
    self.weight = weight
    self.kinds, self.passes = self.inner.kinds, self.inner.passes
    self.measures = self.inner.measures | {
        'loss/distil': targets.Measure('nats per token'),
        'eval/distil': targets.Measure('nats per token', said='{:.4f} from the teacher')}

  def weights(self, batch: dict) -> jax.Array:
    """Returns f32[...], the weights of `inner`."""
    return self.inner.weights(batch)

  def counts(self, batch: dict) -> tuple:
    """Returns (counts of `inner`, f32[] the sum of the weights)."""
    return self.inner.counts(batch), targets.divisor(self.weights(batch))

  def loss(self, outputs: jax.Array, batch: dict, counts: typing.Any) -> tuple:
    """Returns (f32[], metrics) for outputs [B,...], of several passes [P,B,...]; see `targets.Target`."""
    inner_loss, values = self.inner.loss(outputs, batch, counts[0])
    by_pass = outputs[None] if self.passes == 1 else outputs
    distance = sum(self._apart(of_pass, batch) for of_pass in by_pass) / counts[1]
    values = values | {'loss/distil': distance / self.passes}
    return (1 - self.weight) * inner_loss + self.weight * distance, values

  def judge(self, outputs: jax.Array, batch: dict) -> dict:
    """Returns the sums of `inner`, and distil f32[], for outputs [B,...]."""
    return self.inner.judge(outputs, batch) | dict(distil=self._apart(outputs, batch))

  def _apart(self, outputs, batch):
    teacher_outputs = batch.get(targets.OUTPUTS)
    if teacher_outputs is None:
      raise UserError(f"loss.run='': the data bring no {targets.OUTPUTS}; set loss.run to the run directory "
                      'of the teacher')
    if teacher_outputs.shape != outputs.shape:
      raise UserError(f'loss.run={self.run!r}: its model gives {list(teacher_outputs.shape)}, and this one '
                      f'{list(outputs.shape)}; they must be alike, such as in model.vocab_size')
    distance = self.inner.apart(outputs, jax.lax.stop_gradient(teacher_outputs), self.temperature)
    return jnp.sum(distance * self.weights(batch))

  def metrics(self, totals: dict) -> dict:
    """Returns the metrics of `inner`, and the distance."""
    return self.inner.metrics(totals) | {'eval/distil': totals['distil'] / totals['weight']}
