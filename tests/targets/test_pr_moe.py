"""Staged distillation: a student hears its teacher until a step, beside its whole loss."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import lookup
from stmoe import targets

BATCH = dict(decoder_target_tokens=jnp.array([[1, 2]]), decoder_loss_weights=jnp.ones((1, 2), jnp.int32),
             other_outputs=jnp.array([[[0.0, 1, 2], [2, 0, 1]]]))
OUTPUTS = jnp.array([[[1.0, 0, 0], [0, 0, 1]]])


def values(step, **fields):
  target = lookup.recipe('target', dict(name='pr_moe', inner=dict(name='ids'), until=3) | fields)()
  total, found = jax.jit(lambda step: targets.at(target, step).loss(
      OUTPUTS, BATCH, targets.counts(target, None, BATCH)))(step)
  return float(total), {name: float(value) for name, value in found.items()}


def test_the_teacher_is_heard_until_its_step():
  early, found = values(2, weight=0.5)
  np.testing.assert_allclose(early, found['loss/ce'] + 0.5 * found['loss/distil'], rtol=1e-6)
  late, same = values(3, weight=0.5)
  assert same == found and found['loss/distil'] > 0
  np.testing.assert_allclose(late, found['loss/ce'], rtol=1e-6)
  assert values(3, weight=0.5, until=None)[0] == early


def test_a_target_without_stages_is_the_same_in_every_step():
  target = lookup.recipe('target', dict(name='ids'))()
  assert targets.at(target, jnp.int32(0)) is target
