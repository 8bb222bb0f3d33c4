"""The target of PR-MoE's students: the loss of the data, and for a while a teacher beside it."""

import copy

import jax
import jax.numpy as jnp

from stmoe import ranges
from stmoe.targets import teacher


class PRMoE(teacher.Teacher):
  """L + beta T^2 KL(teacher || student) until a step, then L alone (Mixture-of-Students, arXiv:2201.05596).

  Args:
    inner:       recipe of the target of the data.
    run, step:   run directory of the teacher and number of its checkpoint, see `teacher.Teacher`.
    temperature: T.
    weight:      beta.
    until:       steps with the teacher (staged distillation); None = all. The teacher runs later, too: a run
      that goes on without this target is cheaper.
  Differs: the divergence is a mean over targets. The released code counts padding, and divides by the full
    length also where a curriculum has shorter rows; without padding and curriculum that is the same.
  """

  def __init__(self, *, inner: ranges.Named('target'), run: ranges.Text = '',
               step: ranges.Natural | None = None, temperature: ranges.Positive = 1.0,
               weight: ranges.NonNegative = 1.0, until: ranges.Count | None = 400_000):
    super().__init__(inner=inner, run=run, step=step, temperature=temperature, weight=weight)
    self.until = until
    self.heard: float | jax.Array = 1.0  # part of beta in this step

  def at(self, step: jax.Array) -> 'PRMoE':
    """Returns the target in training step `step` i32[]."""
    now = copy.copy(self)
    now.heard = 1.0 if self.until is None else jnp.float32(step < self.until)
    return now

  def together(self, task: jax.Array, apart: jax.Array) -> jax.Array:
    """Returns f32[], the loss of the task plus the weighted divergence, both f32[]."""
    return task + self.weight * self.heard * apart
