"""The target of MC-SMoE's fine-tuning: a task's loss plus the distance from the model before compression."""

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe import targets
from stmoe.targets import teacher


class McSmoe(teacher.Teacher):
  """L_task + alpha KL(teacher || student) of softmax(logits / tau) (arXiv:2310.01334).

  The divergence is a sum over the targets of a row, and a mean over rows. It is not multiplied by tau^2.
  Evaluation reports its mean over targets. The loss of hidden states is that of `teacher`, off in the paper.

  Args:
    inner:       recipe of the target of the data.
    run:         run directory of the teacher, the model before compression; see `teacher.Teacher`.
    step:        of the teacher's checkpoint; None = the newest.
    temperature: tau.
    weight:      alpha.
    layers, distance, hidden_weight: of hidden states, see `teacher.Teacher`; () = without.
  Differs: what is no target, such as padding, has no part in the sum.
  """

  def __init__(self, *, inner: ranges.Named('target'), run: ranges.Text = '',
               step: ranges.Natural | None = None, temperature: ranges.Positive = 2.0,
               weight: ranges.NonNegative = 0.2,
               layers: ranges.Many(ranges.Row(ranges.Text, ranges.Text)) = (),
               distance: ranges.Choice(*teacher.DISTANCES) = 'squared',
               hidden_weight: ranges.NonNegative = 1.0):
    super().__init__(inner=inner, run=run, step=step, temperature=temperature, weight=weight, layers=layers,
                     distance=distance, hidden_weight=hidden_weight)

  def _measures(self):
    return super()._measures() | ({'loss/distil': targets.Measure('nats per row')} if self.compares else {})

  def metrics(self, totals: dict) -> dict:
    """Returns the metrics of `inner`, and the distances; that of predictions is without tau^2."""
    own = dict(distil=totals['distil'] / self.temperature ** 2) if self.compares else {}
    return super().metrics(totals | own)

  def divisor(self, batch: dict) -> jax.Array:
    """Returns f32[], tau^2 rows of a whole batch: `_apart` is multiplied by tau^2."""
    return jnp.float32(self.temperature ** 2 * self.weights(batch).shape[0])

  def together(self, task: jax.Array, apart: jax.Array) -> jax.Array:
    """Returns f32[], the loss of the task plus the weighted distance, both f32[]."""
    return task + self.weight * apart
