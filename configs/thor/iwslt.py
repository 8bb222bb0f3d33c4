r"""THOR on IWSLT'14 German to English: 6+6 layers, two experts in every second layer.

Taming Sparsely Activated Transformer with Stochastic Experts (arXiv:2110.04260), the released command.
Expected (unverified): 34.8 BLEU of a Transformer, 37.8 of THOR; here loss and accuracy are measured.
Differs: IWSLT'14 is no public data set of TFDS: give any parallel text. T5's pre-norm backbone with relative
positions and RMSNorm, without biases, instead of post-LayerNorm with sinusoids. The smoothed loss is without
the entropy of its target (a constant). 10,000 pieces and 40k steps are this project's choice. In evaluation
the expert is drawn per time step, as in the reference. The paper's draw per sentence is
--config.blocks.m.router.eval_dispatch=sentence: a translation keeps it while it is written.

  stmoe train thor/iwslt --config.data.files=train.de,train.en,valid.de,valid.en --workdir runs/thor
  stmoe train thor/iwslt:smoke                        laptop, about a minute
  stmoe eval runs/thor --sweep blocks.m.router.eval_dispatch=token,sentence,time_step,batch,0,1
  stmoe eval runs/thor --sweep eval.draws=1,2,4       the ensemble over draws
"""

from stmoe.configs import arguments
from stmoe.configs.thor import paper
from stmoe.configs.thor import recipe


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False)
  c = recipe.translation(paper.SIZES['iwslt'], 'pairs', vocab=10_000, steps=40_000)
  return recipe.smoke(c) if args.smoke else c.lock()
