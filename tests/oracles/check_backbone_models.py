"""Checks of T5 without experts against recorded Hugging Face, T5X and flaxformer values."""

import activations
import jax
import jax.numpy as jnp
import models_flaxformer
import models_hf
import numpy as np
import optax

from stmoe.parts import relpos

VISIBLE = {'bidirectional': True, 'causal': False}


def t5_forward(case):
  c = case.config
  # "gated-NAME" or NAME; "gated-gelu" was always the tanh approximation, "gelu" is the exact function.
  *gate, name = c.get('feed_forward_proj', 'relu').split('-')
  assert gate in ([], ['gated']), c['feed_forward_proj']
  assert name in activations.TORCH, f'{case}: the check cannot translate feed_forward_proj={name!r}'
  activation = 'gelu' if gate and name == 'gelu' else activations.TORCH[name]
  blocks = dict(d=dict(layer='dense', d_ff=c['d_ff'], activation=activation, gated=bool(gate)))
  model = models_hf.build(c, case.group('weight:'), blocks,
                          *(models_hf.pattern('d' * layers) for layers in models_hf.depths(c)))
  logits, memory, aux = jax.jit(lambda model: models_hf.forward(model, case))(model)
  assert not aux
  case.assert_close('logits', logits)
  case.assert_close('encoder_last_hidden_state', memory)
  _residual_stream(case, model)
  real = (case['labels'] >= 0) & (case['labels'] != c.get('pad_token_id', 0))
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(np.maximum(case['labels'], 0)))
  case.assert_close('nll_mean', np.float32((nll * real).sum() / real.sum()))
  if 'greedy_ids' in case:
    np.testing.assert_array_equal(_greedy(model, case, memory), case['greedy_ids'])


def _residual_stream(case, model):
  """Compares the residual stream entering the encoder blocks, those that were recorded."""
  real = jnp.asarray(case['attention_mask'])
  seen = models_hf.visible.Visible(mask=models_hf.visible.same_segment(jnp.ones_like(real), real),
                                   bias=model.encoder_bias(*real.shape[1:] * 2))
  ctx = models_hf.context(case['input_ids']).replace(visible=dict(attention=seen))
  x, blocks = model.embed(ctx.ids), models_hf.layers_of(model.encoder)
  for i in range(len(blocks) + 1):
    if f'encoder_hidden:{i}' in case:
      # Of the last block the reference reports what the final norm makes of it.
      case.assert_close(f'encoder_hidden:{i}', model.encoder.norm(x) if i == len(blocks) else x)
    if i < len(blocks):
      x, _, _ = blocks[i](x, ctx, {})


def _greedy(model, case, memory):
  """Greedy decoding by running the whole decoder again for each token."""
  c, length = case.config, case['greedy_ids'].shape[1]
  pad, end = c.get('pad_token_id', 0), c.get('eos_token_id', 1)
  ids = np.full((memory.shape[0], length), pad, np.int32)
  ids[:, 0] = c.get('decoder_start_token_id', pad)
  segments = jnp.asarray(case['attention_mask'])
  decode = jax.jit(lambda ids: model.decode(models_hf.context(ids, causal=True), memory, segments)[0])
  ended = np.zeros(len(ids), bool)
  for t in range(1, length):
    chosen = np.asarray(decode(ids)[:, t - 1].argmax(-1))
    ids[:, t] = np.where(ended, pad, chosen)
    ended |= chosen == end
  return ids


def relative_position_bucket(case):
  relative = jnp.asarray(case['relative_position'])
  for name in (n for n in case.names() if n != 'relative_position'):
    direction, buckets, distance = name.split('_')
    case.assert_close(name, relpos.bucket(relative, int(buckets), int(distance), VISIBLE[direction]))


def decoder_logit_mask(case):
  case.assert_close('mask', models_flaxformer.decoder_mask(case['decoder_input_tokens'])[..., None])
