"""Decoders of Qwen3-MoE, GLM-4.5 and dots.llm1 written out in numpy, float64: what imported models compute.

What a model has is said by `Facts`, not by a config.json. Equations: DeepSeek-V3, arXiv:2412.19437, 12-16;
tensors have the published names.
"""

import dataclasses

import numpy as np

from tests.interop import wider


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


def tensors(hf, facts, experts, seed=0):
  """Returns dict name -> f32 tensor of a random model with `experts` experts, linear weights [out, in]."""
  rng, made = np.random.default_rng(seed), {}
  d, p, heads = hf['hidden_size'], hf['head_dim'], hf['num_attention_heads']
  kv = hf['num_key_value_heads']

  def put(name, *shape, low=None, scale=1.5):
    x = rng.normal(0, scale * shape[-1] ** -0.5, shape) if low is None else rng.uniform(low, low + 1, shape)
    made[name] = x.astype(np.float32)

  def gated(name, width):
    for part, shape in (('gate', (width, d)), ('up', (width, d)), ('down', (d, width))):
      put(f'{name}{part}_proj.weight', *shape)

  put('model.embed_tokens.weight', hf['vocab_size'], d)
  put('model.norm.weight', d, low=0.5)
  for i, sparse in enumerate(facts.sparse):
    layer = f'model.layers.{i}.'
    for m, rows, columns in (('q', heads * p, d), ('k', kv * p, d), ('v', kv * p, d), ('o', d, heads * p)):
      put(f'{layer}self_attn.{m}_proj.weight', rows, columns)
      if m in facts.biased:
        put(f'{layer}self_attn.{m}_proj.bias', rows, low=-0.5)
      if m in 'qk' and facts.normed:
        put(f'{layer}self_attn.{m}_norm.weight', p, low=0.5)
    put(layer + 'input_layernorm.weight', d, low=0.5)
    put(layer + 'post_attention_layernorm.weight', d, low=0.5)
    if not sparse:
      gated(layer + 'mlp.', hf['intermediate_size'])
      continue
    put(layer + 'mlp.gate.weight', experts, d)
    if facts.groups:
      put(layer + 'mlp.gate.e_score_correction_bias', experts, low=0.2)
    for e in range(experts):
      gated(f'{layer}mlp.experts.{e}.', hf['moe_intermediate_size'])
    if facts.shared:
      gated(layer + 'mlp.shared_experts.', facts.shared)
  if not hf['tie_word_embeddings']:
    put('lm_head.weight', hf['vocab_size'], d)
  return made


def logits(hf, facts, made, ids):
  """Returns f64[B,T,V] of ids [B,T]."""
  t = {name: np.asarray(x, np.float64) for name, x in made.items()}
  head = t.get('lm_head.weight', t['model.embed_tokens.weight'])
  return np.stack([_states(hf, facts, t, row) @ head.T for row in ids])


def _states(hf, facts, t, ids):
  x = t['model.embed_tokens.weight'][ids]                            # [T, D]
  norm = lambda x, name: _rms(x, hf) * t[f'{name}.weight']
  for i, sparse in enumerate(facts.sparse):
    layer = f'model.layers.{i}.'
    seen = norm(x, layer + 'input_layernorm')
    x = x + _attention(hf, facts, t, layer + 'self_attn.', seen, facts.windows[i] or len(x))
    y = norm(x, layer + 'post_attention_layernorm')
    feed = _experts if sparse else lambda hf, facts, t, name, token: _gated(t, name, token)
    x = x + np.stack([feed(hf, facts, t, layer + 'mlp.', token) for token in y])
  return norm(x, 'model.norm')


def _rms(x, hf):
  return x / np.sqrt((x * x).mean(-1, keepdims=True) + hf['rms_norm_eps'])


def _gated(t, name, x):
  gate, up, down = (t[f'{name}{part}_proj.weight'] for part in ('gate', 'up', 'down'))
  return down @ (wider.silu(gate @ x) * (up @ x))


def _attention(hf, facts, t, name, x, window):
  p, heads = hf['head_dim'], hf['num_attention_heads']
  project = lambda m, x: x @ t[f'{name}{m}_proj.weight'].T + t.get(f'{name}{m}_proj.bias', 0)
  q, k, v = (project(m, x).reshape(len(x), -1, p) for m in 'qkv')    # [T, H, P]
  if facts.normed:
    q, k = _rms(q, hf) * t[f'{name}q_norm.weight'], _rms(k, hf) * t[f'{name}k_norm.weight']
  half = facts.turned // 2
  rates = 1e4 ** (-np.arange(half) / half) if facts.rates is None else facts.rates
  for a in (q, k):
    z = a[..., :half] + 1j * a[..., half:2 * half]
    z = z * np.exp(1j * np.arange(len(x))[:, None, None] * rates)
    a[..., :half], a[..., half:2 * half] = z.real, z.imag
  out = np.zeros_like(q)
  for h in range(heads):
    own = h * k.shape[1] // heads
    for at in range(len(x)):
      seen = slice(max(0, at - window + 1), at + 1)
      out[at, h] = wider.softmax(k[seen, own] @ q[at, h] * p ** -0.5) @ v[seen, own]
  return project('o', out.reshape(len(x), -1))


def _experts(hf, facts, t, name, x):
  scores, k = t[name + 'gate.weight'] @ x, hf['num_experts_per_tok']
  scores = 1 / (1 + np.exp(-scores)) if facts.groups else wider.softmax(scores)
  order = scores + t.get(name + 'gate.e_score_correction_bias', 0)
  if facts.groups:                       # the two best of a group say what the group is worth
    worth = np.sort(order.reshape(facts.groups, -1), axis=-1)[:, -2:].sum(-1)
    lost = np.argsort(-worth)[facts.kept:]
    order = order.reshape(facts.groups, -1)
    order[lost] = -np.inf
    order = order.ravel()
  chosen = np.argsort(-order)[:k]
  gates = scores[chosen] / (scores[chosen].sum() if facts.over_sum else 1) * facts.scale
  y = sum(gate * _gated(t, f'{name}experts.{e}.', x) for e, gate in zip(chosen, gates))
  return y + (_gated(t, name + 'shared_experts.', x) if facts.shared else 0)
