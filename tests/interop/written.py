"""Decoders of Llama's form, DeepSeekMoE, OLMoE and FlexOlmo in numpy, token by token.

Names of tensors and the equations are those of Llama (arXiv:2302.13971), DeepSeekMoE (arXiv:2401.06066),
OLMoE (arXiv:2409.02060) and FlexOlmo (arXiv:2507.07024). The pieces are in `sublayers.py`.
"""

import numpy as np

from tests.interop import sublayers


def shapes(hf):
  """Returns dict name -> shape of the tensors of a config.json."""
  d, wanted = hf['hidden_size'], {}
  gated = lambda name, units: sublayers.gated_shapes(name, d, units, biased=hf.get('mlp_bias', False))
  wanted |= sublayers.linear_shapes('model.embed_tokens', hf['vocab_size'], d)
  for i in range(hf['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    attention = sublayers.attention_shapes(
        hf, layer + 'self_attn.', biased='qkvo' if hf.get('attention_bias') else '')
    wanted |= attention | {f'{layer}{name}.weight': (d,) for name in norms(hf)}
    if 'olmo' in hf['model_type']:
      wanted |= {f'{layer}self_attn.{m}_norm.weight': attention[f'{layer}self_attn.{m}_proj.weight'][:1]
                 for m in 'qk'}
    if not sparse(hf, i):
      wanted |= gated(layer + 'mlp.', hf['intermediate_size'])
      continue
    wanted |= sublayers.linear_shapes(layer + 'mlp.gate', experts(hf), d)
    for e in range(experts(hf)):
      wanted |= gated(f'{layer}mlp.experts.{e}.', hf.get('moe_intermediate_size') or hf['intermediate_size'])
    if hf.get('n_shared_experts'):
      wanted |= gated(layer + 'mlp.shared_experts.', hf['n_shared_experts'] * hf['moe_intermediate_size'])
  wanted['model.norm.weight'] = d,
  if not hf['tie_word_embeddings']:
    wanted |= sublayers.linear_shapes('lm_head', hf['vocab_size'], d)
  return wanted


def tensors(hf, seed=0):
  """Returns dict name -> f32 tensor of a random model of a config.json."""
  return sublayers.drawn(shapes(hf), lambda rng, name, shape: rng.normal(0, 0.3, shape), seed)


def norms(hf):
  """The names of the norms of a block's two sub-layers."""
  if hf['model_type'] == 'flex_olmo':
    return 'post_attention_layernorm', 'post_feedforward_layernorm'
  return 'input_layernorm', 'post_attention_layernorm'


def experts(hf):
  """How many experts are routed, 0 in a dense model."""
  names = ('n_routed_experts', 'num_experts', 'num_local_experts')
  return next((hf[name] for name in names if hf.get(name)), 0)


def sparse(hf, i):
  """Whether layer i has experts."""
  first, period = hf.get('first_k_dense_replace', 0), hf.get('moe_layer_freq', 1)
  return experts(hf) > 0 and i >= first and i % period == 0


def logits(hf, made, ids, rates, size=1.0):
  """Returns f64[B,T,V] of ids [B,T]; angles are positions times `rates` [P/2], cos and sin times `size`."""
  return sublayers.logits(made, ids, lambda t, row: _states(hf, t, row, rates, size))


def _states(hf, t, ids, rates, size):
  x = t['model.embed_tokens.weight'][ids]                            # [T, D]
  norm = lambda name, x: sublayers.norm(t, name, x, hf['rms_norm_eps'])
  for i in range(hf['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    attend = lambda x, layer=layer: _attention(hf, t, layer + 'self_attn.', x, rates, size)
    feed = lambda x, layer=layer, i=i: (
        _experts(hf, t, layer + 'mlp.', x) if sparse(hf, i) else sublayers.gated(t, layer + 'mlp.', x))
    for sub_layer, name in zip((attend, feed), norms(hf)):
      if hf['model_type'] == 'flex_olmo':
        x = x + norm(layer + name, sub_layer(x))
      else:
        x = x + sub_layer(norm(layer + name, x))
  return norm('model.norm', x)


def _experts(hf, t, name, x):
  y = []
  for token in x:
    scores = sublayers.softmax(sublayers.linear(t, name + 'gate', token))            # [E]
    chosen = np.argsort(-scores)[:hf['num_experts_per_tok']]
    gates = scores[chosen] / (scores[chosen].sum() if hf['norm_topk_prob'] and len(chosen) > 1 else 1)
    y.append(sublayers.mixed(t, name, token, zip(chosen, gates)))
  y = np.stack(y)                                                    # [T, D]
  return y + (sublayers.gated(t, name + 'shared_experts.', x) if hf.get('n_shared_experts') else 0)


def _attention(hf, t, name, x, rates, size):
  q, k, v = (sublayers.linear(t, f'{name}{m}_proj', x) for m in 'qkv')
  if f'{name}q_norm.weight' in t:                                    # over all heads together
    q, k = (sublayers.norm(t, f'{name}{m}_norm', y, hf['rms_norm_eps']) for m, y in (('q', q), ('k', k)))
  q, k, v = (y.reshape(len(x), -1, 2 * len(rates)) for y in (q, k, v))               # [T, H, P]
  q, k = (sublayers.turned(y, rates, size) for y in (q, k))
  out = sublayers.attended(q, k, v, q.shape[-1] ** -0.5, hf.get('sliding_window'))   # [T, H*P]
  return sublayers.linear(t, name + 'o_proj', out)
