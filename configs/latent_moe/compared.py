"""LatentMoE as `configs/lm` compares it (arXiv:2512.20856)."""

from stmoe.configs import common

CHOICES = 8


def block(d_ff, num_experts, group_size, d_model):
  """Returns four times as many experts in a quarter of the width, 8 for a token.

  What the two projections cost, 2 D l, the experts are narrower: 8 l F' + D l = D F.
  """
  latent = d_model // 4
  router = dict(name='deepseek_v3', num_experts=4 * num_experts, k=CHOICES, route_scale=2.5)
  layer = common.moe(router, (4 * d_ff - d_model) // CHOICES, group_size)
  return layer | dict(layer='latent_moe', latent=latent)


METHODS = dict(latent_moe=common.compared(block, dict(balance=(1e-4, 'sum')), sizes=('d_model',)))
