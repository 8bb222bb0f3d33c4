r"""A BASE layer on one machine: 6 blocks, 8 experts; with and without the shuffle, or dense.

BASE Layers (arXiv:2103.16716) at a size of our own (the paper prints no such model): what balance costs, and
what the shuffle is for. Expected: with shuffle=False the tokens of a group are alike and want the same
experts. So assignment_gap (figure `assignment_gap` of `stmoe plot`) is higher. BASE ends below
method=dense, which has the same FLOPs. Each expert gets exactly 1/8 of the tokens of every training batch.
Training loss is under balanced assignment, which sees later tokens (allow_causal=True): no
language-modelling score. Evaluation is greedy and causal.
Differs: byte-pair pieces of the Python standard library, rotary positions, RMS norms in the dense blocks.

  stmoe train base/small --workdir runs/base_small
  stmoe compare base/small                            shuffled, unshuffled, greedy balanced, dense
  stmoe train base/small:smoke                        laptop, about a minute
  method = base | s_base | dense; assignment = auction | greedy_balanced; shuffle=False
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.base import recipe

METHODS = ('method=base', 'shuffle=False', 'assignment=greedy_balanced', 'method=dense')
VARIANTS = ('method=s_base', *METHODS[1:])
D_FF, EXPERTS, LENGTH = 1024, 8, 256

# What stands in the middle: a layer without attention, of equal FLOPs. 4 sequences are assigned together.
BLOCKS = dict(
    base=lambda args: recipe.inserted(D_FF, EXPERTS, 1, 4 * LENGTH, args.shuffle, args.assignment, 'blocks'),
    s_base=lambda args: dict(common.moe(dict(name='s_base', num_experts=EXPERTS, allow_causal=True), D_FF,
                                        4 * LENGTH), attention=False),
    dense=lambda args: dict(layer='dense', d_ff=D_FF, attention=False),
)


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='base', assignment='auction', shuffle=True)
  c = common.config()
  c.model = dict(name='lm', vocab_size=4096, d_model=256, num_heads=4, head_dim=64, layers=recipe.placed(6),
                 tie_embeddings=True, dtype='float32', scan_layers=True, remat='elementwise')
  c.blocks = dict(d=dict(layer='dense', d_ff=D_FF),
                  m=common.choose('method', args.method, BLOCKS)(args))
  c.data = common.data('stdlib', length=LENGTH, vocab='train:4096')
  c.optimizer = common.adamw(0.98, 0.0)
  c.schedule = dict(name='linear', peak=6e-4, warmup_steps=100, end_fraction=0.0)
  c.train.update(steps=1000, batch_size=32, clip=1.0, log_every=20)
  c.eval.update(every=200, batches=20, batch_size=32)
  c.checkpoint.update(every=200)
  return common.smoke(c) if args.smoke else c.lock()
