"""The pre-training run of a Hash layer model, on a public stand-in for the paper's Reddit.

Nothing is dropped, so the executor is `blocks`, which computes no empty slots. (On TPU `ragged` has a
kernel.)
"""

import math

from stmoe.configs import common
from stmoe.configs.hash import paper

LENGTH, TOKENS_PER_BATCH = 512, 2**17      # neither is known; this project's choice


def pretraining(size, places, sparse, vocab_size=paper.VOCABS['reddit'], steps=paper.OPTIM['steps'],
                attention=True):
  """Returns the unlocked config of a language model of `size` with sparse layers at some places.

  Differs from the paper in every model here:
    data      C4/en (task c4) with a BPE vocabulary of the same size, trained on it, for pushshift.io Reddit,
              which is not public: perplexities do not compare, differences between methods do
    backbone  ours: rotary positions, RMSNorm, no biases outside the experts, head tied to the embedding
    init      a normal distribution of variance 1 / fan_in for Xavier's uniform distribution
    batch     256 rows of 512 tokens, optimizer as in paper.OPTIM (unverified)

  Args:
    size:      widths and layers, see paper.WIDTHS.
    places:    0-based indices of sparse layers among size['layers'], which they replace. With
      attention=False, the numbers of layers after which a layer without attention is inserted.
    sparse:    the sparse block; its router follows the model's vocabulary.
  """
  c = common.config()
  c.model = dict(name='lm', vocab_size=vocab_size, d_model=size['d_model'], num_heads=size['num_heads'],
                 head_dim=size['head_dim'], layers=pattern(size['layers'], places, attention),
                 tie_embeddings=True, dtype='bfloat16', scan_layers=True, remat='full')
  c.blocks = dict(d=dict(layer='dense', d_ff=size['d_ff']))
  if places:
    c.blocks.m = dict(sparse) if attention else dict(sparse, attention=False)
    if 'vocab_size' in c.blocks.m.router:
      c.blocks.m.router.vocab_size = c.model.get_ref('vocab_size')
  c.data = common.data('c4', LENGTH, vocab=f'train:{vocab_size}')
  c.optimizer = dict(name='adamw', b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.0)
  warmup, peak = paper.OPTIM['warmup_steps'], paper.OPTIM['peak']
  c.schedule = dict(name='rsqrt', base=peak * math.sqrt(warmup), hold_steps=warmup, warmup_steps=warmup)
  batch = TOKENS_PER_BATCH // LENGTH
  c.train.update(steps=steps, batch_size=batch, clip=paper.OPTIM['clip'], log_every=100, stats_every=1000)
  c.eval.update(every=5000, batches=100, batch_size=batch)
  c.checkpoint.update(every=5000)
  return c


def pattern(layers, places, replaces=True):
  """Returns the layer pattern of a stack: 'd' dense and 'm' sparse, runs of equal letters as one entry."""
  letters = ''
  for i in range(layers):
    letters += 'm' if replaces and i in places else 'd'
    letters += 'm' if not replaces and i + 1 in places else ''
  runs = []
  for letter in letters:
    if runs and runs[-1][0] == letter:
      runs[-1][1] += 1
    else:
      runs.append([letter, 1])
  return tuple((letter, repeats) for letter, repeats in runs)


def hashed(experts, d_ff=paper.WIDTHS['d_ff'], **router):
  """Returns the Hash layer: experts with biases, ReLU, nothing dropped; `router`: fields of the router."""
  return dict(layer='moe', executor='blocks', group_size=None, router=_router(experts, **router),
              experts=dict(name='mlp', d_ff=d_ff, init_scale=1.0, use_bias=True))


def switch(experts, d_ff=paper.WIDTHS['d_ff']):
  """Returns the Switch layer that Hash is compared with; how the paper set Switch up is not known."""
  router = dict(name='switch', num_experts=experts, capacity_factor=(1.25, 2.0))
  return dict(layer='moe', executor='gather', group_size=None, router=router,
              experts=dict(name='mlp', d_ff=d_ff, init_scale=1.0, use_bias=True))


def multihash(experts, num_hashes, d_ff=paper.WIDTHS['d_ff']):
  """Returns the MultiHash layer: `num_hashes` hash functions, each for its part of both matrices."""
  return dict(layer='multihash', executor='blocks', group_size=None, num_hashes=num_hashes,
              router=_router(experts), experts=dict(name='linear', d_ff=d_ff, init_scale=1.0, use_bias=True))


def _router(experts, **fields):
  return dict(dict(name='hash', num_experts=experts, kind='random', table='', vocab_size=0, seed=paper.SEED),
              **fields)
