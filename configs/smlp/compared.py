"""gMLP and the sparse all-MLP as `configs/lm` compares them (arXiv:2105.08050, arXiv:2203.06850).

There is no attention, so only the whole model can cost the same as the dense language model. Per two
layers, that is 8 D^2 + 4 N D + 4 D F products per position (four projections and N keys and values, twice;
two feed-forward layers). A gMLP block of width W has W (3 D + N) / 2 products, the tMoE 2 D F, as the dense
layer. W follows, rounded to equal chunks: gMLP has two blocks, the sparse all-MLP two blocks and a tMoE.
"""

from stmoe.configs import common
from stmoe.configs.smlp import layers


def width(products, d_model, length, chunks):
  """Returns the even W of two gMLP blocks with `products` products per position; `chunks` divides W/2."""
  return max(1, round(products / (3 * d_model + length) / (2 * chunks))) * 2 * chunks


def products(d_ff, d_model, length):
  """Returns the products per position of two layers of the dense language model."""
  return 8 * d_model**2 + 4 * length * d_model + 4 * d_model * d_ff


def gmlp(d_ff, num_experts, group_size, d_model, length):
  """Returns the dense gMLP block, in place of every layer."""
  return dict(g=layers.gmlp(length, width(products(d_ff, d_model, length), d_model, length, 1)))


def smlp(d_ff, num_experts, group_size, d_model, length):
  """Returns a dense gMLP block, and sMoE (deterministic) and tMoE of a sparse layer."""
  remaining = products(d_ff, d_model, length) - 2 * d_model * d_ff
  wide = width(remaining, d_model, length, num_experts)
  router = dict(name='smlp_deterministic', num_experts=num_experts)
  return dict(g=layers.gmlp(length, wide), s=layers.smoe(length, wide, router),
              t=layers.tmoe(d_ff, num_experts, group_size))


SIZES = ('d_model', 'length')
METHODS = dict(
    gmlp=common.compared(gmlp, backbone='mlp_lm', pattern=lambda pairs: (('gg', pairs),), sizes=SIZES),
    smlp=common.compared(smlp, backbone='mlp_lm', pattern=lambda pairs: (('gst', pairs),), sizes=SIZES))
