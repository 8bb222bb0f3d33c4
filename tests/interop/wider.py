"""Decoders of Phi-3.5-MoE, ERNIE 4.5 and Granite written out in numpy, float64, token by token.

What imported models must compute. Names of tensors and fields are those of the published checkpoints.
"""

import numpy as np

GRANITE = 'granitemoe', 'granitemoeshared'


def shapes(hf):
  """Returns dict name -> shape of the tensors of a config.json, linear weights [out, in]."""
  kind, d, wanted = hf['model_type'], hf['hidden_size'], {}
  heads, p = hf['num_attention_heads'], width(hf)
  kv = hf.get('num_key_value_heads') or heads

  def linear(name, rows, columns, biased=False):
    wanted.update({f'{name}.weight': (rows, columns)} | ({f'{name}.bias': (rows,)} if biased else {}))

  def norm(name):
    wanted.update({f'{name}.weight': (d,)} | ({f'{name}.bias': (d,)} if kind == 'phimoe' else {}))

  def gated(name, units, names=('gate_proj', 'up_proj', 'down_proj'), biased=False):
    for part, rows, columns in zip(names, (units, units, d), (d, d, units)):
      linear(name + part, rows, columns, biased)

  linear('model.embed_tokens', hf['vocab_size'], d)
  biased = hf.get('use_bias' if kind == 'ernie4_5_moe' else 'attention_bias', False)
  for i in range(hf['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    for part, rows, columns in (('q', heads * p, d), ('k', kv * p, d), ('v', kv * p, d), ('o', d, heads * p)):
      linear(f'{layer}self_attn.{part}_proj', rows, columns, biased)
    norm(layer + 'input_layernorm')
    norm(layer + 'post_attention_layernorm')
    if kind == 'phimoe':
      linear(layer + 'block_sparse_moe.gate', hf['num_local_experts'], d)
      for e in range(hf['num_local_experts']):
        gated(f'{layer}block_sparse_moe.experts.{e}.', hf['intermediate_size'], ('w1', 'w3', 'w2'))
    elif kind in GRANITE:
      e, units, shared = (hf.get(key, 0) for key in (
          'num_local_experts', 'intermediate_size', 'shared_intermediate_size'))
      linear(layer + 'block_sparse_moe.router.layer', e, d)
      wanted[layer + 'block_sparse_moe.input_linear.weight'] = e, 2 * units, d
      wanted[layer + 'block_sparse_moe.output_linear.weight'] = e, d, units
      if shared:
        linear(layer + 'shared_mlp.input_linear', 2 * shared, d)
        linear(layer + 'shared_mlp.output_linear', d, shared)
    elif not sparse(hf, i):
      gated(layer + 'mlp.', hf['intermediate_size'], biased=biased)
    else:
      linear(layer + 'mlp.gate', hf['moe_num_experts'], d)
      wanted[layer + 'mlp.moe_statics.e_score_correction_bias'] = 1, hf['moe_num_experts']
      for e in range(hf['moe_num_experts']):
        gated(f'{layer}mlp.experts.{e}.', hf['moe_intermediate_size'])
      if hf['moe_num_shared_experts']:
        gated(layer + 'mlp.shared_experts.', hf['moe_num_shared_experts'] * hf['moe_intermediate_size'],
              biased=biased)
  norm('model.norm')
  if not hf['tie_word_embeddings']:
    linear('lm_head', hf['vocab_size'], d)
  if hf.get('lm_head_bias') or kind == 'ernie4_5_moe' and biased:
    wanted['lm_head.bias'] = hf['vocab_size'],
  return wanted


def tensors(hf, seed=0):
  """Returns dict name -> f32 tensor of a random model of a config.json."""
  rng, made = np.random.default_rng(seed), {}
  for name, shape in shapes(hf).items():
    if 'norm.weight' in name:
      x = rng.uniform(0.5, 1.5, shape)
    elif name.endswith('.weight'):
      x = rng.normal(0, 1.5 * shape[-1] ** -0.5, shape)
    else:
      x = rng.normal(0, 0.1 if 'correction' in name else 0.3, shape)
    made[name] = x.astype(np.float32)
  return made


def width(hf):
  """Numbers of a head."""
  return hf.get('head_dim') or hf['hidden_size'] // hf['num_attention_heads']


def sparse(hf, i):
  """Whether layer i of an ERNIE has experts."""
  last = hf['moe_layer_end_index']
  return ((i + 1) % hf['moe_layer_interval'] == 0 and i >= hf['moe_layer_start_index']
          and (last == -1 or i <= last))


def logits(hf, made, ids, rates, size=1.0):
  """Returns f64[B,T,V] of ids [B,T]; angles are positions times `rates` [P/2], cos and sin times `size`."""
  t = {name: np.asarray(x, np.float64) for name, x in made.items()}
  head, bias = t.get('lm_head.weight', t['model.embed_tokens.weight']), t.get('lm_head.bias', 0)
  return np.stack([(_states(hf, t, row, rates, size) @ head.T + bias) / hf.get('logits_scaling', 1)
                   for row in np.asarray(ids)])


def _states(hf, t, ids, rates, size):
  x = t['model.embed_tokens.weight'][ids] * hf.get('embedding_multiplier', 1)      # [T, D]
  add, feed = hf.get('residual_multiplier', 1), FEEDS[hf['model_type']]
  for i in range(hf['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    y = _attention(hf, t, layer + 'self_attn.', _norm(hf, t, layer + 'input_layernorm', x), rates, size)
    x = x + add * y
    inside = _norm(hf, t, layer + 'post_attention_layernorm', x)
    x = x + add * np.stack([feed(hf, t, layer, i, token) for token in inside])
  return _norm(hf, t, 'model.norm', x)


def _norm(hf, t, name, x):
  x = x - x.mean(-1, keepdims=True) if hf['model_type'] == 'phimoe' else x
  y = x / np.sqrt((x * x).mean(-1, keepdims=True) + hf['rms_norm_eps']) * t[f'{name}.weight']
  return y + t.get(f'{name}.bias', 0)


def _linear(t, name, x):
  return x @ t[f'{name}.weight'].T + t.get(f'{name}.bias', 0)


def _attention(hf, t, name, x, rates, size):
  heads, p = hf['num_attention_heads'], width(hf)
  q, k, v = (_linear(t, f'{name}{m}_proj', x).reshape(len(x), -1, p) for m in 'qkv')
  q, k = (_turned(a, rates, size, neighbours=hf['model_type'] == 'ernie4_5_moe') for a in (q, k))
  scale = hf.get('attention_multiplier', 1) if hf['model_type'] in GRANITE else p ** -0.5
  window, out = hf.get('sliding_window') or len(x), np.zeros_like(q)
  for h in range(heads):
    own = h * k.shape[1] // heads
    for at in range(len(x)):
      seen = slice(max(0, at - window + 1), at + 1)
      out[at, h] = softmax(k[seen, own] @ q[at, h] * scale) @ v[seen, own]
  return _linear(t, name + 'o_proj', out.reshape(len(x), -1))


def softmax(x):
  """Returns f64[n] of scores [n], which may hold -inf."""
  weight = np.exp(x - x.max())
  return weight / weight.sum()


def _turned(x, rates, size, neighbours):
  """x [T,H,P] as complex numbers of its pairs, turned."""
  half = x.shape[-1] // 2
  pairs = (slice(0, None, 2), slice(1, None, 2)) if neighbours else (slice(0, half), slice(half, None))
  angle = np.arange(len(x))[:, None, None] * rates                   # [T, 1, P/2]
  z = (x[..., pairs[0]] + 1j * x[..., pairs[1]]) * size * np.exp(1j * angle)
  y = np.zeros_like(x)
  y[..., pairs[0]], y[..., pairs[1]] = z.real, z.imag
  return y


def silu(x):
  return x / (1 + np.exp(-x))


def _gated(t, name, x, names=('gate_proj', 'up_proj', 'down_proj')):
  gate, up, down = (name + part for part in names)
  return _linear(t, down, silu(_linear(t, gate, x)) * _linear(t, up, x))


def mixer(scores, epsilon):
  """Returns two (expert, gate) of scores f64[E]: each the best of what is left, among its near rivals."""
  left, chosen = np.array(scores), []
  for _ in range(2):
    best = left.max()
    rival = [(best - s) / max(abs(s), best) <= 2 * epsilon for s in scores]
    gates = softmax(np.where(rival, left, -np.inf))
    chosen.append((int(left.argmax()), gates[left.argmax()]))
    left[left.argmax()] = -np.inf
  return chosen


def _phimoe(hf, t, layer, i, x):
  moe = layer + 'block_sparse_moe.'
  chosen = mixer(_linear(t, moe + 'gate', x), hf['router_jitter_noise'])
  return sum(gate * _gated(t, f'{moe}experts.{e}.', x, ('w1', 'w3', 'w2')) for e, gate in chosen)


def _ernie(hf, t, layer, i, x):
  if not sparse(hf, i):
    return _gated(t, layer + 'mlp.', x)
  probs = softmax(_linear(t, layer + 'mlp.gate', x))
  chosen = np.argsort(-probs - t[layer + 'mlp.moe_statics.e_score_correction_bias'][0])[:hf['moe_k']]
  total = max(sum(probs[e] for e in chosen), hf['moe_norm_min'])
  y = sum(probs[e] / total * _gated(t, f'{layer}mlp.experts.{e}.', x) for e in chosen)
  return y + (_gated(t, layer + 'mlp.shared_experts.', x) if hf['moe_num_shared_experts'] else 0)


def _granite(hf, t, layer, i, x):
  moe, shared = layer + 'block_sparse_moe.', layer + 'shared_mlp.'
  scores = _linear(t, moe + 'router.layer', x)
  chosen = np.argsort(-scores)[:hf['num_experts_per_tok']]

  def pair(inward, outward):
    gate, up = np.split(inward @ x, 2)
    return outward @ (silu(gate) * up)

  inward, outward = (t[f'{moe}{part}_linear.weight'] for part in ('input', 'output'))
  y = sum(gate * pair(inward[e], outward[e]) for e, gate in zip(chosen, softmax(scores[chosen])))
  if not hf.get('shared_intermediate_size'):
    return y
  return y + pair(*(t[f'{shared}{part}_linear.weight'] for part in ('input', 'output')))


FEEDS = dict(phimoe=_phimoe, ernie4_5_moe=_ernie, granitemoe=_granite, granitemoeshared=_granite)
