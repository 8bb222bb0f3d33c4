"""Decoders of Qwen3-MoE, GLM-4.5 and dots.llm1 in numpy, token by token.

What a model has is said by `Facts`, not by a config.json. Equations: DeepSeek-V3, arXiv:2412.19437, 12-16.
The pieces are in `sublayers.py`.
"""

import dataclasses

import numpy as np

from tests.interop import sublayers


@dataclasses.dataclass(frozen=True)
class Facts:
  """What layers there are and what attention has; widths are in a config.json.

  sparse, windows: of every layer: whether it has experts, and its window or None.
  turned:  numbers of a head that positions turn, at `rates`, the plain ones by default.
  biased:  the projections that have biases, of 'qkvo'; normed: whether heads have norms.
  groups, kept: groups of experts, and how many a token may reach; 0 groups: gates are softmax's.
  over_sum, scale: whether gates are over their sum, and their factor.
  shared:  width of the shared experts together.
  """
  sparse: tuple
  windows: tuple
  turned: int
  biased: str = ''
  normed: bool = True
  groups: int = 0
  kept: int = 1
  over_sum: bool = True
  scale: float = 1.0
  shared: int = 0
  rates: np.ndarray | None = None


def shapes(hf, facts, experts):
  """Returns dict name -> shape of the tensors of a model with `experts` experts."""
  d = hf['hidden_size']
  wanted = sublayers.linear_shapes('model.embed_tokens', hf['vocab_size'], d)
  wanted['model.norm.weight'] = d,
  for i, sparse in enumerate(facts.sparse):
    layer = f'model.layers.{i}.'
    wanted |= sublayers.attention_shapes(
        hf, layer + 'self_attn.', facts.biased, normed='qk' if facts.normed else '')
    wanted |= {f'{layer}{part}_layernorm.weight': (d,) for part in ('input', 'post_attention')}
    if not sparse:
      wanted |= sublayers.gated_shapes(layer + 'mlp.', d, hf['intermediate_size'])
      continue
    wanted[layer + 'mlp.gate.weight'] = experts, d
    if facts.groups:
      wanted[layer + 'mlp.gate.e_score_correction_bias'] = experts,
    for e in range(experts):
      wanted |= sublayers.gated_shapes(f'{layer}mlp.experts.{e}.', d, hf['moe_intermediate_size'])
    if facts.shared:
      wanted |= sublayers.gated_shapes(layer + 'mlp.shared_experts.', d, facts.shared)
  if not hf['tie_word_embeddings']:
    wanted |= sublayers.linear_shapes('lm_head', hf['vocab_size'], d)
  return wanted


def tensors(hf, facts, experts, seed=0):
  """Returns dict name -> f32 tensor of a random model with `experts` experts."""
  least = lambda name: 0.2 if 'correction' in name else -0.5
  return sublayers.drawn(shapes(hf, facts, experts), lambda rng, name, shape: rng.uniform(
      least(name), least(name) + 1, shape), seed)


def logits(hf, facts, made, ids):
  """Returns f64[B,T,V] of ids [B,T]."""
  return sublayers.logits(made, ids, lambda t, row: _states(hf, facts, t, row))


def _states(hf, facts, t, ids):
  x = t['model.embed_tokens.weight'][ids]                            # [T, D]
  norm = lambda x, name: sublayers.norm(t, name, x, hf['rms_norm_eps'])
  for i, sparse in enumerate(facts.sparse):
    layer = f'model.layers.{i}.'
    seen = norm(x, layer + 'input_layernorm')
    x = x + _attention(hf, facts, t, layer + 'self_attn.', seen, facts.windows[i])
    y = norm(x, layer + 'post_attention_layernorm')
    if sparse:
      x = x + np.stack([_experts(hf, facts, t, layer + 'mlp.', token) for token in y])
    else:
      x = x + sublayers.gated(t, layer + 'mlp.', y)
  return norm(x, 'model.norm')


def _attention(hf, facts, t, name, x, window):
  p, half = hf['head_dim'], facts.turned // 2
  q, k, v = (sublayers.linear(t, f'{name}{m}_proj', x).reshape(len(x), -1, p) for m in 'qkv')  # [T, H, P]
  if facts.normed:
    q, k = (sublayers.norm(t, f'{name}{m}_norm', y, hf['rms_norm_eps']) for m, y in (('q', q), ('k', k)))
  rates = 1e4 ** (-np.arange(half) / half) if facts.rates is None else facts.rates
  q, k = (sublayers.turned(y, rates) for y in (q, k))
  return sublayers.linear(t, name + 'o_proj', sublayers.attended(q, k, v, p ** -0.5, window))


def _experts(hf, facts, t, name, x):
  scores, k = t[name + 'gate.weight'] @ x, hf['num_experts_per_tok']
  scores = 1 / (1 + np.exp(-scores)) if facts.groups else sublayers.softmax(scores)
  order = scores + t.get(name + 'gate.e_score_correction_bias', 0)
  if facts.groups:                       # the two best of a group say what the group is worth
    worth = np.sort(order.reshape(facts.groups, -1), axis=-1)[:, -2:].sum(-1)
    lost = np.argsort(-worth)[facts.kept:]
    order = order.reshape(facts.groups, -1)
    order[lost] = -np.inf
    order = order.ravel()
  chosen = np.argsort(-order)[:k]
  gates = scores[chosen] / (scores[chosen].sum() if facts.over_sum else 1) * facts.scale
  y = sublayers.mixed(t, name, x, zip(chosen, gates))
  return y + (sublayers.gated(t, name + 'shared_experts.', x) if facts.shared else 0)
