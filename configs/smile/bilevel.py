r"""Bi-level routing beside a flat Switch layer of as many experts: a node, then an expert of that node.

SMILE (arXiv:2212.05191). Expected: the same loss a step as Switch, with n - 1 + m - 1 messages of a device
in each exchange instead of n m - 1; the paper reports 2.5 times Switch's throughput on 16 nodes of 8 GPUs.
The executor `hops` exchanges rows in two hops, for the flat router, too (executor=hops); with
mesh.rules='expert=data+expert' the first mesh axis counts the nodes and the second the devices of each.
Differs: the paper's model, optimizer and text are not at hand; this is a language model of Switch-Base's
widths under this project's optimizer, and gates, capacities and coefficients are completions (paper.py).

  stmoe train smile/bilevel --config.mesh.expert=8 --config.mesh.rules=expert=data+expert
  stmoe train smile/bilevel:method=switch
  stmoe train smile/bilevel:intra=own                 a second router for every node
  stmoe train smile/bilevel:smoke                     laptop, about a minute
  method = smile | switch; intra = shared | own; executor = all_to_all | hops
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.smile import paper

NODES, LOCAL = paper.SIZES['3.7b']['nodes'], paper.SIZES['3.7b']['local']
FACTORS = (paper.CAPACITY_FACTOR,) * 2
LOSSES = dict(smile=dict(node_balance=(paper.ALPHA, 'sum'), local_balance=(paper.BETA, 'sum')),
              switch=dict(balance=(paper.ALPHA + paper.BETA, 'sum'), z=(0.0, 'mean')))
VARIANTS = ('method=switch', 'intra=own', 'executor=all_to_all')


def router(method, intra):
  """Returns the router of `method` for the experts of all nodes."""
  fields = dict(num_experts=NODES * LOCAL, capacity_factor=FACTORS)
  if method == 'switch':
    return dict(fields, name='switch', jitter=0.0)
  return dict(fields, name='smile', nodes=NODES, intra_shared=intra == 'shared')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='smile', intra='shared', executor='hops')
  losses = common.choose('method', args.method, LOSSES)
  common.choose('intra', args.intra, dict(shared=0, own=0))
  common.choose('executor', args.executor, dict(hops=0, all_to_all=0))
  c = common.config()
  c.model = dict(name='lm', vocab_size=32000, d_model=768, num_heads=12, head_dim=64, layers=(('dm', 6),),
                 tie_embeddings=True, dtype='bfloat16', scan_layers=True, remat='full')
  c.blocks = dict(d=dict(layer='dense', d_ff=3072, activation='relu'),
                  m=dict(layer='moe', executor=args.executor, group_size=None,
                         router=router(args.method, args.intra),
                         experts=dict(name='mlp', d_ff=3072, init_scale=1.0)))
  c.losses = losses
  c.data = common.data('c4', 512, vocab='train:32000')
  common.train(c, steps=100_000, batch_size=1024, peak=6e-4)
  c.mesh.expert = 8
  return smoke(c) if args.smoke else c.lock()


def smoke(c):
  """Shrinks `c` as `common.smoke` does, to two nodes."""
  if 'nodes' in c.blocks.m.router:
    c.blocks.m.router.nodes = 2
  c.schedule.warmup_steps = 5
  return common.smoke(c)
