"""Decoders written out in numpy, float64, token by token: what imported models must compute.

Names of tensors and the equations are those of Llama (arXiv:2302.13971), DeepSeekMoE (arXiv:2401.06066),
OLMoE (arXiv:2409.02060) and FlexOlmo (arXiv:2507.07024).
"""

import math

import numpy as np


def tensors(hf, seed=0):
  """Returns dict name -> f32 tensor of a random model of a config.json, linear weights [out, in]."""
  rng, made = np.random.default_rng(seed), {}
  d, heads = hf['hidden_size'], hf['num_attention_heads']
  p = hf.get('head_dim') or d // heads
  kv = hf.get('num_key_value_heads') or heads

  def linear(name, rows, columns, biased=False):
    made[f'{name}.weight'] = rng.normal(0, 1.5 * columns ** -0.5, (rows, columns)).astype(np.float32)
    if biased:
      made[f'{name}.bias'] = rng.normal(0, 0.3, rows).astype(np.float32)

  def norm(name, width=d):
    made[f'{name}.weight'] = rng.uniform(0.5, 1.5, width).astype(np.float32)

  def mlp(name, width):
    for part, rows, columns in (('gate', width, d), ('up', width, d), ('down', d, width)):
      linear(f'{name}.{part}_proj', rows, columns, hf.get('mlp_bias', False))

  linear('model.embed_tokens', hf['vocab_size'], d)
  for i in range(hf['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    for part, rows, columns in (('q', heads * p, d), ('k', kv * p, d), ('v', kv * p, d), ('o', d, heads * p)):
      linear(f'{layer}self_attn.{part}_proj', rows, columns, hf.get('attention_bias', False))
    for name in norms(hf):
      norm(layer + name)
    if 'olmo' in hf['model_type']:
      norm(layer + 'self_attn.q_norm', heads * p)
      norm(layer + 'self_attn.k_norm', kv * p)
    if not sparse(hf, i):
      mlp(layer + 'mlp', hf['intermediate_size'])
      continue
    linear(layer + 'mlp.gate', experts(hf), d)
    for e in range(experts(hf)):
      mlp(f'{layer}mlp.experts.{e}', hf.get('moe_intermediate_size') or hf['intermediate_size'])
    if hf.get('n_shared_experts'):
      mlp(layer + 'mlp.shared_experts', hf['n_shared_experts'] * hf['moe_intermediate_size'])
  norm('model.norm')
  if not hf['tie_word_embeddings']:
    linear('lm_head', hf['vocab_size'], d)
  return made


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
  t = {name: np.asarray(x, np.float64) for name, x in made.items()}
  head = t.get('lm_head.weight', t['model.embed_tokens.weight'])
  return np.stack([_states(hf, t, row, rates, size) @ head.T for row in np.asarray(ids)])


def _states(hf, t, ids, rates, size):
  x = t['model.embed_tokens.weight'][ids]                            # [T, D]
  for i in range(hf['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    attend = lambda x, layer=layer: _attention(hf, t, layer + 'self_attn.', x, rates, size)
    feed = lambda x, layer=layer, i=i: (
        _experts(hf, t, layer + 'mlp.', x) if sparse(hf, i) else _mlp(t, layer + 'mlp.', x))
    for sub_layer, name in zip((attend, feed), norms(hf)):
      if hf['model_type'] == 'flex_olmo':
        x = x + _norm(hf, t, layer + name, sub_layer(x))
      else:
        x = x + sub_layer(_norm(hf, t, layer + name, x))
  return _norm(hf, t, 'model.norm', x)


def _norm(hf, t, name, x):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + hf['rms_norm_eps']) * t[f'{name}.weight']


def _linear(t, name, x):
  return x @ t[f'{name}.weight'].T + t.get(f'{name}.bias', 0)


def _mlp(t, name, x):
  gate = _linear(t, name + 'gate_proj', x)
  return _linear(t, name + 'down_proj', gate / (1 + np.exp(-gate)) * _linear(t, name + 'up_proj', x))


def _experts(hf, t, name, x):
  y = _mlp(t, name + 'shared_experts.', x) if hf.get('n_shared_experts') else 0 * x
  for s, token in enumerate(x):
    scores = np.exp(_linear(t, name + 'gate', token))
    scores = scores / scores.sum()
    chosen = np.argsort(-scores)[:hf['num_experts_per_tok']]
    gates = scores[chosen] / (scores[chosen].sum() if hf['norm_topk_prob'] and len(chosen) > 1 else 1)
    for e, gate in zip(chosen, gates):
      y[s] = y[s] + gate * _mlp(t, f'{name}experts.{e}.', token)
  return y


def _attention(hf, t, name, x, rates, size):
  heads = hf['num_attention_heads']
  kv = hf.get('num_key_value_heads') or heads
  q, k, v = (_linear(t, f'{name}{m}_proj', x) for m in 'qkv')
  if f'{name}q_norm.weight' in t:
    q, k = _norm(hf, t, name + 'q_norm', q), _norm(hf, t, name + 'k_norm', k)
  q, k, v = (y.reshape(len(x), -1, 2 * len(rates)) for y in (q, k, v))
  q, k = _turned(q, rates, size), _turned(k, rates, size)
  window = hf.get('sliding_window') or len(x)
  out = np.zeros_like(q)
  for h in range(heads):
    for at in range(len(x)):
      first = max(0, at - window + 1)
      score = k[first:at + 1, h * kv // heads] @ q[at, h] / math.sqrt(q.shape[-1])
      weight = np.exp(score - score.max())
      out[at, h] = weight / weight.sum() @ v[first:at + 1, h * kv // heads]
  return _linear(t, name + 'o_proj', out.reshape(len(x), -1))


def _turned(x, rates, size):
  angle = np.arange(len(x))[:, None, None] * rates                   # [T, 1, P/2]
  a, b = np.split(x, 2, axis=-1)
  cos, sin = size * np.cos(angle), size * np.sin(angle)
  return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
