"""Mixture-of-Supernets as `configs/lm` compares it (arXiv:2306.04845)."""

from stmoe.configs import common
from stmoe.configs.mixture_of_supernets import paper


def block(d_ff, num_experts, group_size):
  """Returns two sets of weights, mixed for a network of half the width or the whole, which is evaluated."""
  return dict(layer='mixed_weights', d_ff=d_ff, num_experts=paper.EXPERTS, widths=(d_ff // 2, d_ff))


METHODS = dict(mixture_of_supernets=common.compared(block))
