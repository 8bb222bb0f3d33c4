r"""Mixtral-8x7B with null experts: tokens have between none and four of its eight experts.

AdaMoE (arXiv:2406.13233). Expected on ARC-Challenge after fine-tuning (paper.REPORTED): 1.67 real experts a
token where Mixtral has 2, FLOPs 14.55 % less, accuracy 1.69 points higher. Expected parameters 46.7B.
Differs: a training from scratch on C4/en; the paper fine-tunes the released Mixtral with LoRA on sets of
reasoning. The coefficient is that of its LoRA experiments, over k; how it is annealed is not known.

  stmoe train adamoe/mixtral
  stmoe train adamoe/mixtral:k=3,null=8
  stmoe train adamoe/mixtral:target=1.67              a bias holds the mean number of real experts
  stmoe train adamoe/mixtral:loss=plain_balance       the loss that ran in the Mixtral release
  stmoe train adamoe/mixtral:lora                     four low-rank experts of one network
  stmoe train adamoe/mixtral:smoke                    laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.adamoe import paper

VARIANTS = ('k=3,null=8', 'target=1.67', 'loss=plain_balance', 'lora')
WIDTHS = ('vocab_size', 'd_model', 'num_heads', 'num_kv_heads', 'head_dim')
LENGTH = 4096


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, k=paper.SIZE['k'], null=paper.SIZE['null'], target=0.0,
                         loss='balance', lora=False)
  common.whole('k', args.k)
  size = paper.SIZE
  router = dict(name='adamoe', num_experts=paper.LORA['experts'] if args.lora else size['experts'],
                num_null=args.null, k=args.k, tiled=True, target=args.target or None)
  c = common.config()
  c.model = dict(name='lm', tie_embeddings=False, dtype='bfloat16', scan_layers=True, remat='full',
                 layers=(('m', size['layers']),), **{name: size[name] for name in WIDTHS})
  bank = dict(experts='lora') if args.lora else dict(experts='glu', activation='silu')
  c.blocks = dict(m=common.moe(router, size['d_ff'], **bank))
  weight = paper.LORA['balance'] / args.k
  c.losses = {name: (weight if name == args.loss else 0.0, 'sum') for name in ('balance', 'plain_balance')}
  c.data = common.data('c4', LENGTH, vocab=f'train:{size["vocab_size"]}')
  common.train(c, steps=100_000, batch_size=1024, warmup_steps=5 if args.smoke else 2000)
  c.mesh.expert = router['num_experts']
  if args.smoke:
    common.smoke(c).unlock()
    c.model.num_kv_heads = 1
  return c.lock()
