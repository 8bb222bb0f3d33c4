"""Mixture-of-Depths as `configs/lm` compares it (arXiv:2404.02258)."""

from stmoe.configs import common

SHARE = 0.5                            # the paper's eighth would make experts of these sizes 13 times as wide


def block(d_ff, num_experts, group_size, d_model, length):
  """Returns a dense layer in a block that half of the tokens pass.

  What attention and layer save on the others, the layer is wider: with heads of D in all, s (8 D^2 + 4 s T D
  + 4 D F') = 8 D^2 + 4 T D + 4 D F.
  """
  wider = (1 / SHARE - 1) * 2 * d_model + (1 / SHARE - SHARE) * length
  around = dict(name='mixture_of_depths', share=SHARE)
  return dict(layer='dense', d_ff=int(d_ff / SHARE + wider), around=around)


METHODS = dict(mixture_of_depths=common.compared(block, dict(predictor=(1.0, 'mean')),
                                                 sizes=('d_model', 'length')))
