"""Checks of THOR: the two-pass loss, and the layer with the experts it drew."""

import functools

import activations
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from stmoe.core.execute import einsum
from stmoe.experts import mlp
from stmoe.parts import norm
from stmoe.routers import thor
from stmoe.targets import ids


def loss(case):
  real = case['target'] != case.config['pad_id']
  batch = dict(decoder_target_tokens=jnp.asarray(case['target']), decoder_loss_weights=jnp.asarray(real))
  alpha, smoothing = case.config['consistency_alpha'], case.config['label_smoothing']
  vocab = case['logits1'].shape[-1]

  def offset():
    # Fairseq leaves the entropy of the smoothed target in the loss, T5X (and we) subtract it: a constant.
    if not smoothing:
      return 0.0
    off = smoothing / (vocab - 1)
    return -real.sum() * ((1 - smoothing) * np.log(1 - smoothing) + smoothing * np.log(off))

  def total(logits1, logits2):
    sums = ids.passes(jnp.stack([logits1, logits2]), batch, 0.0, smoothing)
    return sums['ce'] + 2 * offset() + alpha * sums['consistency'], sums

  logits = [jnp.asarray(case[f'logits{i}']) for i in (1, 2)]
  (value, sums), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(*logits)
  case.assert_close('total', value)
  case.assert_close('consistency', sums['consistency'])
  case.assert_close('ntokens', ids.weights(batch).sum().astype(jnp.int32))
  for i, grad in zip((1, 2), grads):
    one = functools.partial(ids.task, logits[i - 1], batch, 0.0)
    case.assert_close(f'ce{i}', one(smoothing)['ce'] + offset())
    case.assert_close(f'nll{i}', one(0.0)['ce'])
    case.assert_close(f'dlogits{i}', grad)


def layer(case):
  # The reference is time-major, [L,B,D]; rows here are the sentences, [B,L,D].
  config, x = case.config, jnp.asarray(case['x']).swapaxes(0, 1)
  drawn = case.option('mode', dict(train='expert', eval_sentence='mask', eval_token='mask'))
  activation = case.option('activation', activations.TORCH)
  batch, length, width = x.shape
  drawn = case[drawn]
  if drawn.ndim == 1:                                                # one draw for each time step
    drawn = drawn[:, None]
  expert = jnp.broadcast_to(jnp.asarray(drawn), (length, batch)).T   # [B, L]
  bank = mlp.Mlp(width, num_experts=config['E'], d_ff=config['F'], activation=activation,
                 use_bias=True, rngs=nnx.Rngs(0))
  # Matrices of the reference are [out,in].
  bank.wi[...], bank.wo[...] = (jnp.asarray(case[name]).swapaxes(1, 2) for name in ('fc1_w', 'fc2_w'))
  bank.bi[...], bank.bo[...] = jnp.asarray(case['fc1_b']), jnp.asarray(case['fc2_b'])
  normalise = norm.LayerNorm(width, rngs=nnx.Rngs(0))
  normalise.scale[...], normalise.bias[...] = jnp.asarray(case['ln_scale']), jnp.asarray(case['ln_bias'])
  a, aux = jax.jit(lambda expert: thor.thor(expert, jnp.ones((batch, length), bool), config['E']))(expert)
  assert aux.load.sum() == batch * length

  @jax.jit
  def whole(x, bank, normalise):
    run = lambda h: einsum.execute(h, a, bank)
    return x + run(normalise(x)) if config['pre_layer_norm'] else normalise(x + run(x))
  case.assert_close('y', whole(x, bank, normalise).swapaxes(0, 1))
