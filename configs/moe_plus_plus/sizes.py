r"""MoE++ at its four sizes: real experts beside zero, copy and constant ones, gating residuals over depth.

MoE++ (arXiv:2410.07348). Expected: fewer than two real experts a token (paper.REPORTED) at the loss of a
plain mixture with two; router scores that vary less from layer to layer than without residuals.
Expected parameters 0.6B, 1B, 2B, 7B.
Differs: widths are ours, chosen to make the printed counts; C4/en; optimizer, schedule, batch and length are
this project's; capacity counts choices (routers/moe_plus_plus.py).

  stmoe train moe_plus_plus/sizes:size=1b
  stmoe train moe_plus_plus/sizes:residual=False
  stmoe train moe_plus_plus/sizes:kinds=zero          zero experts alone, as many
  stmoe train moe_plus_plus/sizes:kinds=none          the plain mixture
  stmoe train moe_plus_plus/sizes:smoke               laptop, about a minute
  size = 0.6b | 1b | 2b | 7b; kinds = all | zero | copy | constant | none; gates = others | chosen
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.moe_plus_plus import paper

WIDTHS = dict(d_model=768, num_heads=12, head_dim=64, layers=12, d_ff=2048)
LARGE = dict(d_model=1536, num_heads=16, head_dim=96, layers=22, d_ff=4096)
VOCAB_SIZE, LENGTH = 65536, 2048
KINDS = ('constant', 'copy', 'zero')
VARIANTS = ('size=7b', 'residual=False', 'kinds=zero', 'kinds=none', 'tau=0.25', 'gates=chosen',
            'two_layers=False')


def virtual(kinds, number):
  """Returns the fields num_constant, num_copy, num_zero of a layer with `number` virtual experts."""
  counts = dict(all=(number - 2, 1, 1), none=(0, 0, 0),
                **{kind: tuple(number * (kind == other) for other in KINDS) for kind in KINDS})
  return {f'num_{kind}': count for kind, count in zip(KINDS, common.choose('kinds', kinds, counts))}


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, size='0.6b', kinds='all', residual=True, tau=paper.TAU,
                         gates='others', two_layers=True)
  size = common.choose('size', args.size, paper.SIZES)
  widths = LARGE if args.size == '7b' else WIDTHS
  router = dict(name='moe_plus_plus', num_experts=size['experts'], k=paper.K, tau=args.tau, gates=args.gates,
                two_layers=args.two_layers, capacity_factor=(paper.GAMMA, None))
  c = common.config()
  c.model = dict(name='lm', vocab_size=VOCAB_SIZE, tie_embeddings=False, dtype='bfloat16', scan_layers=True,
                 remat='full', layers=(('m', widths['layers']),),
                 **{name: widths[name] for name in ('d_model', 'num_heads', 'head_dim')})
  block = common.moe(router, widths['d_ff'], experts='glu', activation='silu')
  c.blocks = dict(m=dict(block, layer='moe_plus_plus', executor='gather', residual=args.residual,
                         scaled=args.gates == 'others', **virtual(args.kinds, size['virtual'])))
  c.losses = dict(balance=(paper.BETA, 'mean'))
  c.data = common.data('c4', LENGTH, vocab=f'train:{VOCAB_SIZE // 1000 * 1000}')
  common.train(c, steps=int(size['tokens'] / LENGTH / 2048), batch_size=2048,
               warmup_steps=5 if args.smoke else 2000)
  c.mesh.expert = 8
  return common.smoke(c) if args.smoke else c.lock()
