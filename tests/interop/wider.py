"""Decoders of Phi-3.5-MoE, ERNIE 4.5 and Granite in numpy, token by token.

Names of tensors and fields are those of the published checkpoints. The pieces are in `sublayers.py`.
"""

import numpy as np

from tests.interop import sublayers

GRANITE = 'granitemoe', 'granitemoeshared'
NUMBERED = 'w1', 'w3', 'w2'               # gate, up, down of Phi


def shapes(hf):
  """Returns dict name -> shape of the tensors of a config.json."""
  kind, d = hf['model_type'], hf['hidden_size']
  biased = hf.get('use_bias' if kind == 'ernie4_5_moe' else 'attention_bias', False)
  wanted = sublayers.linear_shapes('model.embed_tokens', hf['vocab_size'], d)
  for i in range(hf['num_hidden_layers']):
    layer = f'model.layers.{i}.'
    wanted |= sublayers.attention_shapes(hf, layer + 'self_attn.', 'qkvo' if biased else '')
    wanted |= _norm_shapes(hf, layer + 'input_layernorm')
    wanted |= _norm_shapes(hf, layer + 'post_attention_layernorm')
    wanted |= SHAPES[kind](hf, layer, i)
  wanted |= _norm_shapes(hf, 'model.norm')
  if not hf['tie_word_embeddings']:
    wanted |= sublayers.linear_shapes('lm_head', hf['vocab_size'], d)
  if hf.get('lm_head_bias') or kind == 'ernie4_5_moe' and biased:
    wanted['lm_head.bias'] = hf['vocab_size'],
  return wanted


def _norm_shapes(hf, name):
  parts = ('weight', 'bias') if hf['model_type'] == 'phimoe' else ('weight',)
  return {f'{name}.{part}': (hf['hidden_size'],) for part in parts}


def _phimoe_shapes(hf, layer, _):
  moe, d, experts = layer + 'block_sparse_moe.', hf['hidden_size'], hf['num_local_experts']
  wanted = sublayers.linear_shapes(moe + 'gate', experts, d)
  for e in range(experts):
    wanted |= sublayers.gated_shapes(f'{moe}experts.{e}.', d, hf['intermediate_size'], NUMBERED)
  return wanted


def _ernie_shapes(hf, layer, i):
  mlp, d, experts = layer + 'mlp.', hf['hidden_size'], hf['moe_num_experts']
  units = hf['moe_intermediate_size']
  if not sparse(hf, i):
    return sublayers.gated_shapes(mlp, d, hf['intermediate_size'], biased=hf['use_bias'])
  wanted = sublayers.linear_shapes(mlp + 'gate', experts, d)
  wanted[mlp + 'moe_statics.e_score_correction_bias'] = 1, experts
  for e in range(experts):
    wanted |= sublayers.gated_shapes(f'{mlp}experts.{e}.', d, units)
  if shared := hf['moe_num_shared_experts']:
    wanted |= sublayers.gated_shapes(mlp + 'shared_experts.', d, shared * units, biased=hf['use_bias'])
  return wanted


def _granite_shapes(hf, layer, _):
  moe, d, experts = layer + 'block_sparse_moe.', hf['hidden_size'], hf['num_local_experts']
  units = hf['intermediate_size']
  wanted = sublayers.linear_shapes(moe + 'router.layer', experts, d)
  wanted |= {f'{moe}input_linear.weight': (experts, 2 * units, d),
             f'{moe}output_linear.weight': (experts, d, units)}
  if shared := hf.get('shared_intermediate_size'):
    wanted |= sublayers.linear_shapes(layer + 'shared_mlp.input_linear', 2 * shared, d)
    wanted |= sublayers.linear_shapes(layer + 'shared_mlp.output_linear', d, shared)
  return wanted


SHAPES = dict(phimoe=_phimoe_shapes, ernie4_5_moe=_ernie_shapes, granitemoe=_granite_shapes,
              granitemoeshared=_granite_shapes)


def tensors(hf, seed=0):
  """Returns dict name -> f32 tensor of a random model of a config.json."""
  return sublayers.drawn(shapes(hf), lambda rng, name, shape: rng.normal(
      0, 0.1 if 'correction' in name else 0.3, shape), seed)


def sparse(hf, i):
  """Whether layer i of an ERNIE has experts."""
  last = hf['moe_layer_end_index']
  return ((i + 1) % hf['moe_layer_interval'] == 0 and i >= hf['moe_layer_start_index']
          and (last == -1 or i <= last))


def logits(hf, made, ids, rates, size=1.0):
  """Returns f64[B,T,V] of ids [B,T]; angles are positions times `rates` [P/2], cos and sin times `size`."""
  found = sublayers.logits(made, ids, lambda t, row: _states(hf, t, row, rates, size))
  return found / hf.get('logits_scaling', 1)


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
  return sublayers.norm(t, name, x, hf['rms_norm_eps'])


def _attention(hf, t, name, x, rates, size):
  p = sublayers.width(hf)
  q, k, v = (sublayers.linear(t, f'{name}{m}_proj', x).reshape(len(x), -1, p) for m in 'qkv')  # [T, H, P]
  q, k = (sublayers.turned(y, rates, size, neighbours=hf['model_type'] == 'ernie4_5_moe') for y in (q, k))
  scale = hf.get('attention_multiplier', 1) if hf['model_type'] in GRANITE else p ** -0.5
  out = sublayers.attended(q, k, v, scale, hf.get('sliding_window'))                 # [T, H*P]
  return sublayers.linear(t, name + 'o_proj', out)


def mixer(scores, epsilon):
  """Returns two (expert, gate) of scores f64[E]: each the best of what is left, among its near rivals."""
  left, chosen = np.array(scores), []
  for _ in range(2):
    best = left.max()
    rival = [(best - s) / max(abs(s), best) <= 2 * epsilon for s in scores]
    gates = sublayers.softmax(np.where(rival, left, -np.inf))
    chosen.append((int(left.argmax()), gates[left.argmax()]))
    left[left.argmax()] = -np.inf
  return chosen


def _phimoe(hf, t, layer, i, x):
  moe = layer + 'block_sparse_moe.'
  chosen = mixer(sublayers.linear(t, moe + 'gate', x), hf['router_jitter_noise'])
  return sublayers.mixed(t, moe, x, chosen, NUMBERED)


def _ernie(hf, t, layer, i, x):
  if not sparse(hf, i):
    return sublayers.gated(t, layer + 'mlp.', x)
  probs = sublayers.softmax(sublayers.linear(t, layer + 'mlp.gate', x))
  chosen = np.argsort(-probs - t[layer + 'mlp.moe_statics.e_score_correction_bias'][0])[:hf['moe_k']]
  total = max(sum(probs[e] for e in chosen), hf['moe_norm_min'])
  y = sublayers.mixed(t, layer + 'mlp.', x, [(e, probs[e] / total) for e in chosen])
  return y + (sublayers.gated(t, layer + 'mlp.shared_experts.', x) if hf['moe_num_shared_experts'] else 0)


def _granite(hf, t, layer, i, x):
  moe, shared = layer + 'block_sparse_moe.', layer + 'shared_mlp.'
  scores = sublayers.linear(t, moe + 'router.layer', x)
  chosen = np.argsort(-scores)[:hf['num_experts_per_tok']]

  def pair(inward, outward):
    gate, up = np.split(inward @ x, 2)
    return outward @ (sublayers.silu(gate) * up)

  inward, outward = (t[f'{moe}{part}_linear.weight'] for part in ('input', 'output'))
  y = sum(gate * pair(inward[e], outward[e]) for e, gate in zip(chosen, sublayers.softmax(scores[chosen])))
  if not hf.get('shared_intermediate_size'):
    return y
  return y + pair(*(t[f'{shared}{part}_linear.weight'] for part in ('input', 'output')))


FEEDS = dict(phimoe=_phimoe, ernie4_5_moe=_ernie, granitemoe=_granite, granitemoeshared=_granite)
