"""Checks of the perturbed cosine router: CompeteSMoE's layer, which is LibMoE's of X-MoE with a theta."""

import check_x_moe


def layer(case):
  assert case.config['theta'] is not None
  check_x_moe.layer(case)
