r"""With and without normalised router logits; adaptive against constant balance coefficients.

Skywork-MoE (arXiv:2406.06563), its 2.5B models of 16 experts. Expected direction (the report prints curves):
with normalisation lower loss, fewer dropped tokens, and ratios of the largest gates that stay above 1;
scales 1 and 2 alike. Adaptive coefficients follow each layer's drops; constants were 1e-2 or 1e-3.
Differs: the widths of the 2.5B model are not given, these make 2.4B; data C4/en; optimizer, schedule,
batch, steps and capacity factor are this project's.

  stmoe train skywork/ablation:scale=2.0
  stmoe train skywork/ablation:scale=0.0              no normalisation
  stmoe train skywork/ablation:alpha=0.001            a constant coefficient
  stmoe train skywork/ablation:smoke                  laptop, about a minute
"""

from stmoe.configs import arguments
from stmoe.configs.skywork import paper
from stmoe.configs.skywork import recipe

SIZE = dict(paper.ABLATION, d_model=1024, num_heads=8, head_dim=128, layers=22, d_ff=2048, vocab_size=65536)
VARIANTS = ('scale=2.0', 'scale=0.0', 'alpha=0.001')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, scale=paper.SCALE, alpha=0.0)
  c = recipe.pretraining(SIZE, steps=50_000, scale=args.scale or None, alpha=args.alpha or None)
  return recipe.smoke(c) if args.smoke else c.lock()
