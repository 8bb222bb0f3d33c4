"""Blocks and phases that the experiments of BAM have in common."""

from stmoe.configs import common
from stmoe.configs.bam import paper

# The paper's coefficients are not at hand; these are ST-MoE's. Attention routers have no loss (section 3).
LOSSES = dict(balance=(1e-2, 'sum'), z=(1e-3, 'sum'), attention_balance=(0.0, 'sum'),
              attention_z=(0.0, 'sum'))
# What becomes of attention -> (whether keys and values are common, choices of a token, None = of all); None:
# it is averaged.
METHODS = dict(kv=(False, None), shared_kv=(True, None), top2=(False, 2), top1=(False, 1), btx=None)
PHASES = ('seed', 'branch', 'mix')
PARALLEL = dict(around=dict(name='parallel'))


def dense(d_ff):
  """Returns the block of seeds and branches."""
  return dict(layer='dense', d_ff=d_ff, activation='silu', gated=True) | PARALLEL


def attention(experts, shared_kv, k=None):
  """Returns the attention of a mixture: the k largest probabilities as they are, None = all."""
  router = dict(name='st_moe', num_experts=experts, k=k or experts, normalize_gates=False,
                second_policy='all', capacity_factor=(None, None))
  return dict(attention=dict(name='bam', router=router, shared_kv=shared_kv))


def mixture(d_ff, method, experts):
  """Returns the block of a mixture: top-1 feed-forward experts, and those of attention that `method` says."""
  router = dict(name='switch', num_experts=experts, jitter=0.0, capacity_factor=(None, None))
  block = common.moe(router, d_ff, experts='glu', activation='silu') | PARALLEL
  mixed = common.choose('method', method, METHODS)
  return block if mixed is None else block | attention(experts, *mixed)


def put(c, phase, method, d_ff, layers, experts=paper.EXPERTS):
  """Sets the layers, blocks and losses of `c` to what a phase trains, and how a branch begins."""
  common.choose('phase', phase, dict.fromkeys(PHASES))
  mixes = phase == 'mix'
  c.model.layers = (('m' if mixes else 'd', layers),)
  c.blocks = dict(m=mixture(d_ff, method, experts)) if mixes else dict(d=dense(d_ff))
  if mixes:
    c.losses = LOSSES if METHODS[method] else {name: LOSSES[name] for name in ('balance', 'z')}
  if phase == 'branch':
    c.finetune = dict(model='start', load='all', optimizer='fresh', dropout_rate=None,
                      expert_dropout_rate=None, capacity_factor=None, aux=True)
