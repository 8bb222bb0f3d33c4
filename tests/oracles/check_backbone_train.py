"""Checks of the optimizer and of the output loss against recorded T5X values."""

import jax
import jax.numpy as jnp
import numpy as np

from stmoe.targets import ids
from stmoe.train import optimizers

# T5X's name -> ours.
AXES = {'mlp_embed': 'expert_embed'}


# Settings of the reference that we know in one value only.
UNKNOWN = {
    'factor_rules': {'embed, mlp_embed: row; vocab, mlp, expert_mlp: column; expert: batch; '
                     'unmodeled: none': None},
    'max_parameter_scale': {None: None}, 'skip_nan_updates': {False: None, True: None},
    'dtype_momentum': {'float32': None}}


def adafactor_step(case):
  c = case.config
  names = {n: tuple(AXES.get(a, a) for a in axes) for n, axes in c['logical_axes'].items()}
  params = case.group('param0:')
  for key, table in UNKNOWN.items():
    case.option(key, table, next(iter(table)))
  decay = c.get('weight_decay_rate')
  fields = dict(decay_rate=c.get('decay_rate', 0.8), step_offset=c.get('step_offset', 0),
                momentum=c.get('beta1'), clipping_threshold=c.get('clipping_threshold', 1.0),
                min_dim_size_to_factor=c.get('min_dim_size_to_factor', 128),
                epsilon1=c.get('epsilon1', 1e-30), epsilon2=c.get('epsilon2', 1e-3),
                multiply_by_parameter_scale=c.get('multiply_by_parameter_scale', True))
  if not c.get('factored', True):                                    # nothing is so large, and no axis a row
    names = {n: (None,) * len(axes) for n, axes in names.items()}
    fields['min_dim_size_to_factor'] = 2 ** 31
  exponent = c.get('weight_decay_rate_lr_exponent')

  def optimizer_of(rate):
    scale = decay if not exponent else (1.0 if decay is None else decay) * rate ** exponent
    return optimizers.adafactor(names, params, weight_decay=scale or 0.0, **fields)

  state = optimizer_of(1.0).init(params)
  limit = c.get('global_norm_clip_threshold')
  for step, rate in enumerate(c['learning_rates']):
    grads = case.group(f'grad{step}:')
    if limit:
      norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in grads.values()))
      grads = optimizers.clip(grads, norm, limit)
    params, state = jax.jit(optimizer_of(rate).update)(grads, state, params, jnp.float32(rate))
    for name, value in params.items():
      case.assert_close(f'param{step + 1}:{name}', value)
  for name, slots in state['slots'].items():
    for slot, value in slots.items():
      case.assert_close(f'state:{name}:{slot}', value)


def _normalised(factor, weights, case):
  """Returns (weights f32[B,T], divisor) of T5X's loss normalising factor: a name, a number or None for 1."""
  if factor == 'AVERAGE_PER_SEQUENCE':
    if 'segment_ids' in case:
      segments = case['segment_ids']
      same = segments[:, :, None] == segments[:, None]               # [B, T, T]
      whole = np.einsum('bts,bs->bt', same, weights)
    else:
      whole = weights.sum(axis=-1, keepdims=True)
    weights = np.float32(np.where(whole > 0, weights / np.where(whole > 0, whole, 1), 0))
    return weights, weights.sum()
  named = {None: 1.0, 'NUM_REAL_TARGET_TOKENS': weights.sum(), 'NUM_TOTAL_TARGET_TOKENS': weights.size}
  if isinstance(factor, (int, float)):
    return weights, float(factor)
  return weights, case.option('loss_normalizing_factor', named)


def cross_entropy_z_loss(case):
  c = case.config
  targets = case['targets']
  weights = case['weights'] if 'weights' in case else np.float32(targets > 0)
  weights, divisor = _normalised(c.get('loss_normalizing_factor'), weights, case)
  batch = dict(decoder_target_tokens=targets, decoder_loss_weights=weights)
  real = jnp.sum(ids.weights(batch))

  def loss(logits):
    sums = ids.task(logits, batch, c.get('z_loss', 0.0), c.get('label_smoothing', 0.0))
    return (sums['ce'] + sums['z']) / divisor, sums['z'] / divisor

  (total, z_term), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(case['logits']))
  case.assert_close('loss', total)
  case.assert_close('z_loss', z_term)
  case.assert_close('weight_sum', real)
  case.assert_close('grad_logits', grad)
