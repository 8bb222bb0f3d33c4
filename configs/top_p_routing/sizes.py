r"""The 3.5B model whose tokens have as many of 16 experts as exceed a probability of 0.4.

Dynamic routing (arXiv:2403.07652). Expected: 1.76 experts a token after training, more in lower layers and
on harder tasks, and 0.7 % more than top-2 on average (paper.REPORTED). Expected parameters 3.5B. FLOPs are
counted with two experts a token, which the paper's model has after 60B tokens. The metric active_experts says
how many there were: up to 7 while the router is flat.
Differs: C4/en instead of RedPajama; width of the experts, heads, optimizer, schedule and batch are ours.

  stmoe train top_p_routing/sizes
  stmoe train top_p_routing/sizes:method=top2         the baseline
  stmoe train top_p_routing/sizes:entropy=False       without the entropy loss: more experts
  stmoe train top_p_routing/sizes:max_experts=4
  stmoe train top_p_routing/sizes:smoke               laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.top_p_routing import paper

VARIANTS = ('method=top2', 'entropy=False', 'p=0.8', 'max_experts=4')
D_FF, HEADS, VOCAB_SIZE, LENGTH = 5312, 16, 32000, 2048


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='top_p', p=paper.P, max_experts=0, entropy=True)
  size = paper.SIZE
  top_p = dict(name='top_p_routing', p=args.p, max_experts=args.max_experts or None,
               expected=min(2.0, args.max_experts or 2.0))
  top2 = dict(name='st_moe', k=2, second_policy='all', capacity_factor=(None, None))
  router = common.choose('method', args.method, dict(top_p=top_p, top2=top2))
  c = common.config()
  c.model = dict(name='lm', vocab_size=VOCAB_SIZE, d_model=size['d_model'], num_heads=HEADS,
                 head_dim=size['d_model'] // HEADS, tie_embeddings=False, dtype='bfloat16', scan_layers=True,
                 remat='full', layers=(('md', size['layers'] // 2),))
  router = dict(router, num_experts=size['experts'])
  c.blocks = dict(m=common.moe(router, D_FF, experts='glu', activation='silu'),
                  d=dict(layer='dense', d_ff=D_FF, activation='silu', gated=True))
  c.losses = dict(balance=(paper.BALANCE, 'mean'))
  if args.method == 'top_p':
    c.losses.entropy = (paper.ENTROPY if args.entropy else 0.0, 'mean')
  c.data = common.data('c4', LENGTH, vocab=f'train:{VOCAB_SIZE}')
  common.train(c, steps=int(size['tokens'] / LENGTH / 2048), batch_size=2048,
               warmup_steps=5 if args.smoke else 2000)
  c.mesh.expert = 8
  return common.smoke(c) if args.smoke else c.lock()
