r"""A language model in whose every second block an eighth of the tokens is computed; with experts: MoDE.

Mixture-of-Depths (arXiv:2404.02258). Expected: at equal training FLOPs, which buy more layers or steps,
a loss at most that of the dense model. The predictor is right for 97 to 99 % of the tokens (u). In
evaluation, where it selects, the loss is at most 0.01 nats above that of the largest scores.
Differs: widths, data, optimizer, rate and coefficients are this project's, the paper's are not at hand.
Training selects by the largest scores of a row and so looks ahead, evaluation and decoding do not.

  stmoe train mixture_of_depths/isoflop
  stmoe train mixture_of_depths/isoflop:mode=staged   experts inside of the blocks that tokens skip
  stmoe train mixture_of_depths/isoflop:smoke         laptop, about a minute
  mode = depths | staged | integrated (a zero expert beside the experts, all tokens attend) | dense;
  share = 0.125; gate = raw | sigmoid; select = predictor | router: the score itself, with the loss membership
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.mixture_of_depths import paper

MODES = ('depths', 'staged', 'integrated', 'dense')
VARIANTS = ('mode=staged', 'mode=integrated', 'mode=dense', 'share=0.5', 'select=router', 'gate=sigmoid')
D_FF, EXPERTS = 4096, 8
# What the score itself needs changes it, so it weighs little; the predictor has parameters of its own.
SELECT = dict(predictor=dict(predictor=(1.0, 'mean'), membership=(0.0, 'mean')),
              router=dict(membership=(0.01, 'mean')))


def block(mode, around):
  """Returns the block of letter m."""
  experts = common.moe(dict(name='smoe', num_experts=EXPERTS), D_FF // 2, activation='gelu')
  dense = dict(layer='dense', d_ff=D_FF, activation='gelu')
  return dict(depths=dense | dict(around=around), staged=experts | dict(around=around),
              integrated=experts | dict(virtual=('zero',)), dense=dense)[mode]


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, mode='depths', share=paper.SHARE, select='predictor', gate='raw')
  common.choose('mode', args.mode, dict.fromkeys(MODES))
  around = dict(name='mixture_of_depths', share=args.share, select=args.select, gate=args.gate)
  routed = args.mode in ('staged', 'integrated')
  c = common.config()
  c.model = dict(name='lm', vocab_size=32_000, d_model=1024, num_heads=16, head_dim=64, tie_embeddings=True,
                 layers=(('dm', 12),), dtype='bfloat16', scan_layers=True, remat='full')
  c.blocks = dict(d=dict(layer='dense', d_ff=D_FF, activation='gelu'), m=block(args.mode, around))
  c.losses = dict(balance=(0.01 if routed else 0.0, 'mean'), z=(0.0, 'mean'))
  if args.mode in ('depths', 'staged'):
    c.losses.update(common.choose('select', args.select, SELECT))
  c.data = common.data('c4', 2048, vocab='train:32000')
  common.train(c, steps=50_000, batch_size=256, warmup_steps=1000, eval_rows=128)
  if args.smoke:
    c.schedule.warmup_steps = 5
    return common.smoke(c)
  return c.lock()
