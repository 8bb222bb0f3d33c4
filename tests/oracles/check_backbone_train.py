"""Checks of the optimizer and of the output loss against recorded T5X values."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.train import losses
from stmoe.train import optimizers

# T5X's name -> ours.
AXES = {'mlp_embed': 'expert_embed'}


def adafactor_step(case):
  c = case.config
  names = {n: tuple(AXES.get(a, a) for a in axes) for n, axes in c['logical_axes'].items()}
  params = case.group('param0:')
  optimizer = optimizers.adafactor(
      names, params, decay_rate=c['decay_rate'], step_offset=c['step_offset'], momentum=c.get('beta1'),
      weight_decay=c.get('weight_decay_rate', 0.0), min_dim_size_to_factor=c['min_dim_size_to_factor'])
  state = optimizer.init(params)
  limit = c.get('global_norm_clip_threshold')
  for step, rate in enumerate(c['learning_rates']):
    grads = case.group(f'grad{step}:')
    if limit:
      norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in grads.values()))
      grads = optimizers.clip(grads, norm, limit)
    params, state = optimizer.update(grads, state, params, jnp.float32(rate))
    for name, value in params.items():
      case.assert_close(f'param{step + 1}:{name}', value)
  for name, slots in state['slots'].items():
    for slot, value in slots.items():
      case.assert_close(f'state:{name}:{slot}', value)


def cross_entropy_z_loss(case):
  c = case.config
  targets = case['targets']
  batch = dict(decoder_target_tokens=targets, decoder_loss_weights=np.float32(targets > 0))
  real = jnp.sum(losses.weights(batch))
  divisor = real if c['loss_normalizing_factor'] == 'NUM_REAL_TARGET_TOKENS' else 1.0

  def loss(logits):
    sums = losses.task(logits, batch, c['z_loss'], c['label_smoothing'])
    return (sums['ce'] + sums['z']) / divisor, sums['z'] / divisor

  (total, z_term), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(case['logits']))
  case.assert_close('loss', total)
  case.assert_close('z_loss', z_term)
  case.assert_close('weight_sum', real)
  case.assert_close('grad_logits', grad)
