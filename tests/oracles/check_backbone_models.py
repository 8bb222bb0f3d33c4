"""Checks of T5 without experts against recorded Hugging Face, T5X and flaxformer values."""

import jax
import jax.numpy as jnp
import models_flaxformer
import models_hf
import numpy as np
import optax

from stmoe.layers import relpos

VISIBLE = {'bidirectional': True, 'causal': False}


def t5_forward(case):
  c = case.config
  activation, gated = {'relu': ('relu', False), 'gated-gelu': ('gelu', True)}[c['feed_forward_proj']]
  blocks = dict(d=dict(layer='dense', d_ff=c['d_ff'], activation=activation, gated=gated))
  model = models_hf.build(c, case.group('weight:'), blocks,
                          encoder=(('d', c['num_layers']),), decoder=(('d', c['num_decoder_layers']),))
  logits, memory, aux = jax.jit(lambda model: models_hf.forward(model, case))(model)
  assert not aux
  case.assert_close('logits', logits)
  case.assert_close('encoder_last_hidden_state', memory)
  _residual_stream(case, model)
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(case['labels']))
  real = case['labels'] > 0
  case.assert_close('nll_mean', np.float32((nll * real).sum() / real.sum()))
  np.testing.assert_array_equal(_greedy(model, case, memory), case['greedy_ids'])


def _residual_stream(case, model):
  """Compares the residual stream entering the first two encoder blocks."""
  real = jnp.asarray(case['attention_mask'])
  visible = models_hf.attention.Visible(mask=models_hf.attention.same_segment(jnp.ones_like(real), real),
                                        bias=model.encoder_bias(*real.shape[1:] * 2))
  ctx = models_hf.context(case['input_ids'])
  x = model.embed(ctx.ids)
  case.assert_close('encoder_hidden:0', x)
  x, _, _ = models_hf.layers_of(model.encoder)[0](x, ctx, {}, visible)
  # Of the last block the reference reports what the final norm makes of it.
  case.assert_close('encoder_hidden:1', model.encoder.norm(x) if case.config['num_layers'] == 1 else x)


def _greedy(model, case, memory):
  """Greedy decoding by running the whole decoder again for each token."""
  length = case['greedy_ids'].shape[1]
  ids = np.zeros((memory.shape[0], length), np.int32)
  segments = jnp.asarray(case['attention_mask'])
  decode = jax.jit(lambda ids: model.decode(models_hf.context(ids, causal=True), memory, segments)[0])
  ended = np.zeros(len(ids), bool)
  for t in range(1, length):
    chosen = np.asarray(decode(ids)[:, t - 1].argmax(-1))
    ids[:, t] = np.where(ended, 0, chosen)
    ended |= chosen == 1
  return ids


def relative_position_bucket(case):
  relative = jnp.asarray(case['relative_position'])
  for name in (n for n in case.names() if n != 'relative_position'):
    direction, buckets, distance = name.split('_')
    case.assert_close(name, relpos.bucket(relative, int(buckets), int(distance), VISIBLE[direction]))


def decoder_logit_mask(case):
  case.assert_close('mask', models_flaxformer.decoder_mask(case['decoder_input_tokens'])[..., None])
