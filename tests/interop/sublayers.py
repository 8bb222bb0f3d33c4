"""Sub-layers of Llama's form (arXiv:2302.13971) in numpy, float64: the pieces of written decoders.

`t` is a dict of f64 tensors under their published names; linear weights are [out, in]. `written.py`,
`headed.py`, `wider.py` and `test_gpt_oss.py` make decoders of the pieces: what imported models must compute.
So nothing of the package is called here.
"""

import numpy as np

GATED = 'gate_proj', 'up_proj', 'down_proj'


def width(hf):
  """Returns the numbers of a head."""
  return hf.get('head_dim') or hf['hidden_size'] // hf['num_attention_heads']


def linear_shapes(name, rows, columns, biased=False):
  """Returns dict name -> shape of a matrix, and of its bias if `biased`."""
  return {f'{name}.weight': (rows, columns)} | ({f'{name}.bias': (rows,)} if biased else {})


def attention_shapes(hf, name, biased='', normed=''):
  """Returns dict name -> shape; `biased` of 'qkvo' have biases, heads of `normed` have norms."""
  d, heads, p, shapes = hf['hidden_size'], hf['num_attention_heads'], width(hf), {}
  kv = hf.get('num_key_value_heads') or heads
  for m, rows, columns in (('q', heads * p, d), ('k', kv * p, d), ('v', kv * p, d), ('o', d, heads * p)):
    shapes |= linear_shapes(f'{name}{m}_proj', rows, columns, m in biased)
    shapes |= {f'{name}{m}_norm.weight': (p,)} if m in normed else {}
  return shapes


def gated_shapes(name, d, units, parts=GATED, biased=False):
  """Returns dict name -> shape of a gated layer of `units` hidden numbers."""
  gate, up, down = (name + part for part in parts)
  return (linear_shapes(gate, units, d, biased) | linear_shapes(up, units, d, biased)
          | linear_shapes(down, d, units, biased))


def drawn(shapes, rest, seed=0):
  """Returns dict name -> f32 tensor of random numbers, drawn in the order of `shapes`.

  A matrix makes numbers 1.5 times as large. Norms are 0.5 to 1.5; rest(rng, name, shape) draws what is left.
  """
  rng, made = np.random.default_rng(seed), {}
  for name, shape in shapes.items():
    if 'norm.weight' in name:
      x = rng.uniform(0.5, 1.5, shape)
    elif name.endswith('.weight'):
      x = rng.normal(0, 1.5 * shape[-1] ** -0.5, shape)
    else:
      x = rest(rng, name, shape)
    made[name] = x.astype(np.float32)
  return made


def logits(made, ids, states):
  """Returns f64[B,T,V] of ids [B,T]; states(t, ids [T]) are a text's last normed activations, f64[T,D]."""
  t = {name: np.asarray(x, np.float64) for name, x in made.items()}
  head, bias = t.get('lm_head.weight', t['model.embed_tokens.weight']), t.get('lm_head.bias', 0)
  return np.stack([states(t, row) @ head.T + bias for row in np.asarray(ids)])       # [B, T, V]


def linear(t, name, x):
  """Returns f64[...,out] of x [...,in]."""
  return x @ t[f'{name}.weight'].T + t.get(f'{name}.bias', 0)


def norm(t, name, x, epsilon):
  """Returns x [...,D] over its root mean square, times the weight, plus the bias if there is one."""
  size = np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)                          # [..., 1]
  return x / size * t[f'{name}.weight'] + t.get(f'{name}.bias', 0)


def silu(x):
  """Returns x times its sigmoid."""
  return x / (1 + np.exp(-x))


def softmax(x):
  """Returns f64[n] of scores [n], which may hold -inf."""
  weight = np.exp(x - x.max())
  return weight / weight.sum()


def gated(t, name, x, parts=GATED):
  """Returns f64[...,D] of x [...,D]: a linear layer times silu of another, through a third."""
  gate, up, down = (name + part for part in parts)
  return linear(t, down, silu(linear(t, gate, x)) * linear(t, up, x))


def mixed(t, name, x, chosen, parts=GATED):
  """Returns f64[D] of a token x [D]: the sum of experts times gates; `chosen` are pairs (expert, gate)."""
  return sum(gate * gated(t, f'{name}experts.{e}.', x, parts) for e, gate in chosen)


def turned(x, rates, size=1.0, neighbours=False):
  """Returns x [T,H,P] with its first 2 len(rates) numbers turned and the rest as they are.

  Pairs, as complex numbers, are neighbours, or else a number and the one `len(rates)` further on. Angles are
  positions times `rates`; `size` multiplies cos and sin (YaRN, arXiv:2309.00071).
  """
  half, y = len(rates), x.copy()
  real, other = slice(0, half), slice(half, 2 * half)
  if neighbours:
    real, other = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
  angle = np.arange(len(x))[:, None, None] * rates                                   # [T, 1, P/2]
  z = (x[..., real] + 1j * x[..., other]) * size * np.exp(1j * angle)                # [T, H, P/2]
  y[..., real], y[..., other] = z.real, z.imag
  return y


def attended(q, k, v, scale, window=None, sinks=None):
  """Returns f64[T,H*P] of q [T,H,P], k and v [T,K,P].

  A token sees `window` tokens, itself the last; None: all that are before. `sinks` [H] are scores beside the
  scores of keys, and their values are 0 (gpt-oss, arXiv:2508.10925).
  """
  out, heads = np.zeros_like(q), q.shape[1]
  sinks = np.full(heads, -np.inf) if sinks is None else sinks
  for h in range(heads):
    own = h * k.shape[1] // heads                      # K heads of keys, each of H / K heads of queries
    for at in range(len(q)):
      seen = slice(max(0, at + 1 - (window or len(q))), at + 1)
      scores = np.append(k[seen, own] @ q[at, h] * scale, sinks[h])                  # [seen + 1]
      out[at, h] = softmax(scores)[:-1] @ v[seen, own]                               # [P]
  return out.reshape(len(q), -1)                                                     # [T, H*P]
