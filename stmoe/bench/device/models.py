"""The models whose training steps are timed: published ones, and dense models of equal active FLOPs.

Experiments of the papers give Switch-Base and DeepSeekMoE-16B. OLMoE-1B-7B is read from its configuration.
"""

import functools
from typing import Callable, NamedTuple

from stmoe import experiment
from stmoe import lookup
from stmoe.analysis import flops

# allenai/OLMoE-1B-7B-0924, config.json (arXiv:2409.02060, table 10).
OLMOE = dict(model_type='olmoe', hidden_size=2048, intermediate_size=1024, num_hidden_layers=16,
             num_attention_heads=16, num_key_value_heads=16, vocab_size=50304, num_experts=64,
             num_experts_per_tok=8, norm_topk_prob=False, rms_norm_eps=1e-5, rope_theta=10000.0,
             hidden_act='silu', router_aux_loss_coef=0.01, max_position_embeddings=4096)
# Float32 parameters, two moments and the gradient, and a copy of the parameters in bfloat16.
ADAMW = 4 * 4 + 2
ADAFACTOR = 2 * 4 + 2                    # moments are rows and columns
STATE = 0.55                             # of the memory, for the states of both models; the rest: activations


class Pair(NamedTuple):
  """A sparse model and its dense twin as functions of the number of layers that they are cut to.

  layers: of the published model. least: fewest. step: layers come in so many.
  bytes_per_parameter: of its training state, gradients included.
  """
  sparse: Callable
  dense: Callable
  layers: int
  least: int
  step: int
  bytes_per_parameter: int


def pairs(dry):
  """Returns dict model -> Pair; of a dry run, a tiny one of OLMoE alone."""
  made = {'Switch-Base': Pair(_switch, lambda n: _switch(n, 0), 12, 2, 2, ADAFACTOR),
          'OLMoE-1B-7B': Pair(_olmoe, _olmoe_dense, 16, 1, 1, ADAMW),
          'DeepSeekMoE-16B': Pair(_deepseek, _deepseek_dense, 28, 2, 1, ADAMW)}
  if not dry:
    return made
  tiny = lambda make: lambda count: _tiny(make(count))
  return {'tiny': Pair(tiny(_olmoe), tiny(_olmoe_dense), 1, 1, 1, ADAMW)}


@functools.cache
def cut(pair, memory):
  """Returns the most layers whose training state, with that of the dense twin, takes STATE of `memory` bytes.

  Without knowing the memory, the fewest layers. Parameters grow evenly with the layers.
  """
  if memory is None:
    return pair.least
  total = lambda count: sum(flops.parameters(side(count))['total'] for side in (pair.sparse, pair.dense))
  first, second = total(pair.least), total(pair.least + pair.step)
  room = STATE * memory / pair.bytes_per_parameter - first
  more = int(room // (second - first)) * pair.step
  return max(pair.least, min(pair.layers, pair.least + more))


def _switch(layers, experts=128):
  """Switch-Base with `layers` layers in the encoder and as many in the decoder, every other one sparse."""
  c = _unlocked(experiment.load(f'switch/base_c4:experts={experts}')[0], batch=64)
  for stack in ('encoder', 'decoder'):
    c.model[stack] = tuple((letters, layers // 2) for letters, _ in c.model[stack])
  for letter in 'mn' if experts else '':
    c.blocks[letter].executor = 'pallas'
  return c


def _deepseek(layers):
  c = _unlocked(experiment.load('deepseek_moe/sizes')[0], batch=4)
  c.model.update(layers=(('d', 1), ('m', layers - 1)), remat='none')
  c.blocks.m.inner.executor = 'pallas'
  return c


def _deepseek_dense(layers):
  c = _deepseek(layers)
  m = c.blocks.m
  return _without_experts(c, (m.inner.router.k + m.num_shared) * m.d_ff)


def _olmoe(layers):
  c = _unlocked(experiment.load('deepseek_moe/sizes')[0], batch=4)
  sections = lookup.module('family', 'olmoe').configure(OLMOE, False)
  c.model = dict(sections['model'], dtype='bfloat16', remat='none', layers=(('m', layers),))
  c.blocks, c.losses = sections['blocks'], sections['losses']
  c.blocks.m.executor = 'pallas'
  return c


def _olmoe_dense(layers):
  c = _olmoe(layers)
  return _without_experts(c, c.blocks.m.router.k * c.blocks.m.experts.d_ff)


def _without_experts(c, d_ff):
  """`c` with dense gated layers of width `d_ff` in place of its sparse ones."""
  c.blocks.m = dict(layer='dense', d_ff=d_ff, activation='silu', gated=True)
  c.losses = {name: (0.0, reduction) for name, (_, reduction) in c.losses.items()}
  return c


def _unlocked(c, batch):
  c = c.copy_and_resolve_references().unlock()
  c.train.update(batch_size=batch, microbatches=1)
  c.eval.batch_size = batch
  return c


def _tiny(c):
  """`c`, of OLMoE or its twin, with small widths and the executor that compiles fastest, for CPUs."""
  c.model.update(d_model=16, num_heads=2, head_dim=8, vocab_size=64, dtype='float32', remat='none')
  m = c.blocks.m
  if 'router' in m:
    m.router.num_experts, m.router.k, m.experts.d_ff, m.executor = 4, 2, 8, 'einsum'
  else:
    m.d_ff = 16
  c.data.length, c.train.batch_size, c.eval.batch_size = 16, 2, 2
  return c
