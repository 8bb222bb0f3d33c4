"""Hugging Face T5 and Switch models in our form: weights by name, masks by their conventions."""

import jax.numpy as jnp
from flax import nnx

from stmoe.core import contract
from stmoe.models import t5
from stmoe.parts import visible


def build(config, weights, blocks, encoder, decoder):
  """Returns our unrolled T5 with Hugging Face `weights` (consumed: the dict is empty after).

  Args:
    config:  of the reference.
    weights: dict Hugging Face name -> array; Linear weights are [out, in].
    blocks, encoder, decoder: our configuration of the feed-forward layers.
  """
  tied = config['tie_word_embeddings']
  model = t5.T5(vocab_size=config['vocab_size'], d_model=config['d_model'], encoder=encoder, decoder=decoder,
                blocks=blocks, num_heads=config['num_heads'], head_dim=config['d_kv'], tie_embeddings=tied,
                num_buckets=config['relative_attention_num_buckets'],
                max_distance=config['relative_attention_max_distance'],
                scale_head=config.get('scale_decoder_outputs', True),
                norm_epsilon=config.get('layer_norm_epsilon', 1e-6), scan_layers=False, rngs=nnx.Rngs(0))
  _set(model.embed.table, weights.pop('shared.weight'))
  for copy in ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'):
    weights.pop(copy, None)
  head = weights.pop('lm_head.weight')
  if tied:
    assert (head == model.embed.table[...]).all()
  else:
    _set(model.head.w, head.T)
  for stack, bias in ((model.encoder, model.encoder_bias), (model.decoder, model.decoder_bias)):
    name = stack.name
    _set(stack.norm.scale, weights.pop(f'{name}.final_layer_norm.weight'))
    _set(bias.table, weights.pop(
        f'{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight').T)
    for i, block in enumerate(layers_of(stack)):
      _block(block, f'{name}.block.{i}.layer.', weights)
  assert not weights, sorted(weights)
  return model


def depths(config):
  """Returns (encoder layers, decoder layers); the decoder has as many where the reference is not told."""
  layers, decoder = config['num_layers'], config.get('num_decoder_layers')
  return layers, layers if decoder is None else decoder


def pattern(letters):
  """Returns the pattern of a stack of the blocks `letters`, in order."""
  return ((letters, 1),)


def layers_of(stack):
  """Returns the blocks of an unrolled stack in order."""
  return [block for units in stack.segments for unit in units for block in unit.blocks]


def forward(model, case):
  """Returns (logits, memory, aux) by the reference's masks.

  It masks padding keys of the encoder and nothing else: padding queries see the real keys,
  every decoder position is real, and padding is routed like any token.
  """
  real = jnp.asarray(case['attention_mask'])
  ctx = context(case['input_ids'])
  keys = visible.same_segment(jnp.ones_like(real), real)           # [B, 1, K, K]
  length = real.shape[1]
  seen = visible.Visible(mask=keys, bias=model.encoder_bias(length, length))
  memory, aux = model.encoder(model.embed(ctx.ids), ctx.replace(visible=dict(attention=seen)))
  logits, decoder_aux = model.decode(context(case['decoder_input_ids'], causal=True), memory, real)
  return logits, memory, aux | decoder_aux


def context(ids, mask=None, causal=False):
  """Returns an evaluation Context in which every token of `ids` is real, or those of `mask`."""
  ids = jnp.asarray(ids)
  mask = jnp.ones(ids.shape, bool) if mask is None else jnp.asarray(mask)
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  return contract.Context(mask=mask, ids=ids, positions=positions, segments=jnp.ones_like(ids),
                          step=jnp.asarray(0), tokens=jnp.maximum(mask.sum(), 1).astype(jnp.float32),
                          causal=causal)


def _set(variable, value):
  assert variable.shape == value.shape, (variable.shape, value.shape)
  variable[...] = jnp.asarray(value)


def _block(block, prefix, weights):
  parts = [('0.SelfAttention', block.attention), ('1.EncDecAttention', block.cross)]
  norms = [block.attention_norm, block.cross_norm, block.layer_norm]
  for name, module in parts:
    if module is not None:
      for ours, theirs in (('wq', 'q'), ('wk', 'k'), ('wv', 'v'), ('wo', 'o')):
        _set(getattr(module, ours), weights.pop(f'{prefix}{name}.{theirs}.weight').T)
  for i, module in enumerate(module for module in norms if module is not None):
    _set(module.scale, weights.pop(f'{prefix}{i}.layer_norm.weight'))
  last = f'{prefix}{2 if block.cross is not None else 1}.'
  if f'{last}mlp.router.classifier.weight' in weights:
    _sparse(block.layer, f'{last}mlp.', weights)
  else:
    dense = f'{last}DenseReluDense.' if any(n.startswith(f'{last}Dense') for n in weights) else f'{last}mlp.'
    gated = block.layer.wg is not None
    _set(block.layer.wi, weights.pop(f'{dense}wi_0.weight' if gated else f'{dense}wi.weight').T)
    if gated:
      _set(block.layer.wg, weights.pop(f'{dense}wi_1.weight').T)
    _set(block.layer.wo, weights.pop(f'{dense}wo.weight').T)


def _sparse(layer, prefix, weights):
  _set(layer.router.w, weights.pop(f'{prefix}router.classifier.weight').T)
  for ours, theirs in ((layer.experts.wi, 'wi'), (layer.experts.wo, 'wo')):
    _set(ours, jnp.stack([weights.pop(f'{prefix}experts.expert_{e}.{theirs}.weight').T
                          for e in range(layer.router.num_experts)]))
