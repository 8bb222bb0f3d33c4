r"""T5 1.1 upcycled: half of the MLPs become 32 experts, expert choice in the encoder, top-2 in the decoder.

Sparse Upcycling (arXiv:2212.05055). `dense` is the start; the sparse run goes on with its step and schedule.

  stmoe train upcycling/t5:dense --workdir runs/dense
  stmoe upcycle runs/dense upcycling/t5 --workdir runs/sparse
  stmoe train upcycling/t5 --workdir runs/sparse
  stmoe train upcycling/t5:smoke                      the sparse model from scratch; laptop, about a minute
  size = base | large | xl

All three commands with `smoke` (upcycling/t5:dense,smoke and so on) run on a laptop. Expected: a loss that
first jumps (the gates of a token do not sum to 1). Then SuperGLUE 1.5 to 2 points over the dense model
trained as long (paper.REPORTED), after 55 % (base) or 46 % (large) of the dense training again. Parameters,
counted here:
0.248B to 2.00B (base), 0.783B to 7.22B (large), 2.85B to 26.26B (xl).
Differs: the dense base model is trained for 1M steps like T5 1.1's others (the paper's number is not given);
the extra training is counted in steps, not in compute, and xl's is one half; batch, lengths and groups as in
configs/t5.py; the decoder's balance loss 0.01 and capacity factor 2 are flaxformer's and this project's.
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs import t5
from stmoe.configs.upcycling import paper

VARIANTS = ('dense', 'size=large', 'dense,size=xl')
BALANCE = 1e-2
GROUP = 8                              # sequences routed together: 4096 tokens of the encoder


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, dense=False, size='base')
  dense_steps = common.choose('size', args.size, paper.OPTIM['dense_steps']) or 1_000_000
  extra = paper.OPTIM['extra'][args.size] or 0.5
  size = t5.SIZES[args.size]
  pairs = size['layers'] // 2

  c = t5.pretraining(dense_steps if args.dense else round(dense_steps * (1 + extra)))
  letters = ('dd', 'dd') if args.dense else ('dm', 'dn')
  c.model = t5.model(size, *(((unit, pairs),) for unit in letters))
  c.blocks = dict(d=t5.dense(size['d_ff']))
  if args.dense:
    c.mesh.update(data=-1, expert=1)
  else:
    facts = paper.RECIPE
    common_fields = dict(num_experts=facts['experts'], capacity_factor=(facts['capacity_factor'],) * 2)
    bank = t5.bank(size['d_ff'])
    c.blocks.m, _ = t5.sparse(dict(name=facts['encoder'], normalize=facts['normalize']['t5']) | common_fields,
                              bank, GROUP)
    top_2 = dict(name='st_moe', k=2, normalize_gates=facts['normalize']['t5'], second_policy='all',
                 balance_choices='any')
    _, c.blocks.n = t5.sparse(top_2 | common_fields, bank, GROUP)
    c.losses.balance = (BALANCE, 'mean')
  if args.smoke:
    common.smoke(c).unlock()
    c.train.steps = 20 if args.dense else 30
  return c.lock()
