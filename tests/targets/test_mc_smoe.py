"""The distillation of MC-SMoE: summed over a row, mean over rows, without the square of the temperature."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe import targets
from stmoe.targets import ids
from stmoe.targets import mc_smoe


def test_the_loss_by_hand():
  keys = jax.random.split(jax.random.key(0), 2)
  student, other = (jax.random.normal(key, (2, 3, 5)) for key in keys)
  batch = dict(decoder_target_tokens=jnp.ones((2, 3), jnp.int32),
               decoder_loss_weights=jnp.array([[1.0, 1, 0], [1, 0, 0]]), **{targets.OUTPUTS: other})
  target = mc_smoe.McSmoe(inner=ids.Ids)
  plain = target.inner.loss(student, batch, target.inner.counts(batch))[0]
  p, q = (np.float64(jax.nn.softmax(z / 2.0)) for z in (other, student))
  apart = (p * np.log(p / q)).sum(-1)                                # [B, T]
  wanted = plain + 0.2 * (apart[0, 0] + apart[0, 1] + apart[1, 0]) / 2
  total, values = target.loss(student, batch, target.counts(batch))
  np.testing.assert_allclose(total, wanted, rtol=1e-5)
  np.testing.assert_allclose(values['loss/distil'], (wanted - plain) / 0.2, rtol=1e-4)
  assert target.measures['loss/distil'].unit == 'nats per row'
  sums = jax.tree.map(np.float64, target.judge(student, batch)) | dict(weight=3.0)
  np.testing.assert_allclose(target.metrics(sums)['eval/distil'], (wanted - plain) / 0.2 * 2 / 3, rtol=1e-4)
  of_states = mc_smoe.McSmoe(inner=ids.Ids, weight=0.0, layers=(('decoder_00', 'decoder_01'),))
  assert 'loss/distil' not in of_states.measures
